#!/usr/bin/env bash
# The first Docker host, with the store.
. /flatnet/vagrant/common.sh
etcd 192.168.33.11 '{"Network":"172.16.0.0/15","SubnetLen":17,"Backend":{"Type":"gre"}}'
agent_with 'endpoint = ["http://192.168.33.11:2379"]' 'subnet = ["172.17.0.0/17"]' 'bridge = "docker0"'
container docker0
