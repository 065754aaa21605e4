#!/usr/bin/env bash
# The second Docker host.
. /flatnet/vagrant/common.sh
agent_with 'endpoint = ["http://192.168.33.11:2379"]' 'subnet = ["172.17.128.0/17"]' 'bridge = "docker0"'
container docker0
