#!/usr/bin/env bash
# On host1: its container reaches those of all peers, by IPv4 and IPv6.
. /flatnet/vagrant/common.sh
need jq jq
two_peers() { [ "$(agent status --json | jq '[.networks[0].peers[] | select(.state == "programmed")] | length')" = 2 ]; }
within 120 two_peers
agent status --json | jq -r '.networks[0].peers[] | .subnet, .subnet6' | while read -r subnet; do
    # The subnet's second address.
    address=${subnet%/*}
    case $address in
        *:) address=${address}2 ;;
        *) address=${address%0}2 ;;
    esac
    within 120 ip netns exec c1 ping -c 1 -W 2 "$address"
    echo "reached $address"
done
echo "the containers reach each other"
