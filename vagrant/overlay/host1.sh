#!/usr/bin/env bash
# The first of three hosts, with the store; containers have addresses of both families.
. /flatnet/vagrant/common.sh
etcd 192.168.33.11 '{"Network":"10.100.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:100::/56","Backend":{"Type":"vxlan"}}'
agent_with 'endpoint = ["http://192.168.33.11:2379"]' 'bridge = "flbr0"'
container flbr0
