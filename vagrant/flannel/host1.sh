#!/usr/bin/env bash
# The cookbook's flannel worker.
. /flatnet/vagrant/common.sh
agent_with 'endpoint = ["http://192.168.33.10:2379"]' 'subnet = ["10.100.11.0/24"]' 'bridge = "docker0"'
container docker0
