#!/usr/bin/env bash
# On host1: its container reaches the other host's.
. /flatnet/vagrant/common.sh
within 120 ip netns exec c1 ping -c 3 -W 2 172.17.128.2
echo "the containers reach each other"
