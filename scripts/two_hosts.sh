#!/usr/bin/env bash
# Train one stage on two hosts that are not there: two network namespaces of this machine, joined by a wire of their own.
#
#     scripts/two_hosts.sh tokenizer demo --run runs/two data.toy_clips=64 tokenizer.training.steps=4
#
# Needs Linux, root and iproute2. Each host runs torchrun with one process; both share the run folder, as hosts share a
# network drive. RATE=100mbit DELAY=5ms make the wire as slow as that (tc, netem).
set -euo pipefail
: "${TORCHRUN:=torchrun}" "${RATE:=}" "${DELAY:=0ms}"
name=vq$$
cleanup() {
    ip netns pids "${name}a" 2>/dev/null | xargs -r kill 2>/dev/null || true
    ip netns pids "${name}b" 2>/dev/null | xargs -r kill 2>/dev/null || true
    ip netns delete "${name}a" 2>/dev/null || true
    ip netns delete "${name}b" 2>/dev/null || true
}
trap cleanup EXIT
ip netns add "${name}a"
ip netns add "${name}b"
ip link add "${name}0" type veth peer name "${name}1"
ip link set "${name}0" netns "${name}a"
ip link set "${name}1" netns "${name}b"
for host in a:0:10.99.0.1 b:1:10.99.0.2; do
    IFS=: read -r letter end address <<<"$host"
    ip -n "$name$letter" address add "$address/24" dev "$name$end"
    ip -n "$name$letter" link set "$name$end" up
    ip -n "$name$letter" link set lo up
    if [[ -n $RATE ]]; then
        ip netns exec "$name$letter" tc qdisc add dev "$name$end" root netem rate "$RATE" delay "$DELAY"
    fi
done

host() {
    local letter=$1 end=$2 rank=$3
    shift 3
    GLOO_SOCKET_IFNAME=$name$end NCCL_SOCKET_IFNAME=$name$end OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} \
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 ip netns exec "$name$letter" "$TORCHRUN" --nnodes 2 --node-rank "$rank" \
        --nproc-per-node 1 --master-addr 10.99.0.1 --master-port 29500 -m -- vqvdm train "$@"
}
host b 1 1 "$@" &
host a 0 0 "$@"
wait $!
