#!/usr/bin/env bash
# On host1: its container reaches the master's, and Docker would be started with this host's subnet.
. /flatnet/vagrant/common.sh
within 120 ip netns exec c1 ping -c 3 -W 2 10.100.10.2
agent docker-opts
agent docker-opts | grep -q -- --bip=10.100.11.1/24
echo "the containers reach each other"
