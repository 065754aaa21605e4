#!/usr/bin/env bash
# The cookbook's flannel master: etcd, and a host like any other.
. /flatnet/vagrant/common.sh
etcd 192.168.33.10 '{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan"}}'
agent_with 'endpoint = ["http://192.168.33.10:2379"]' 'subnet = ["10.100.10.0/24"]' 'bridge = "docker0"'
container docker0
