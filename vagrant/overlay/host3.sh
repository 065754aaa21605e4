#!/usr/bin/env bash
# One more host.
. /flatnet/vagrant/common.sh
agent_with 'endpoint = ["http://192.168.33.11:2379"]' 'bridge = "flbr0"'
container flbr0
