#!/usr/bin/env bash
# Host 1 of the cookbook's GRE tunnel, by hand (docs/cookbook.md, gre).
. /flatnet/vagrant/common.sh
ip link add docker0 type bridge
ip addr add 172.17.0.1/17 dev docker0
ip link set docker0 up
ip tunnel add foo mode gre local 192.168.33.11 remote 192.168.33.12
ip link set foo up
ip addr add 172.17.127.254 dev foo
ip route add 172.17.128.0/17 dev foo
sysctl -qw net.ipv4.ip_forward=1
container_with docker0 1476 172.17.0.1/17
