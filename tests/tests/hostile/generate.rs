//! Generated attacks: every packet differs, and none of them may come out of the tunnel. The generator knows the one
//! combination that is allowed (our VNI, a peer's address, a source in that peer's subnet, the family's EtherType) and
//! never makes it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flatnet_model::IpFamily;
use ipnet::IpNet;

use crate::field::{FRIEND, Field, LIAR, PORT, STRANGER, VICTIM, VNI, mac, tunnel};
use crate::packet::{GRE, MAGIC, UDP, ethernet, gre, ip, octets, udp, udp_ip, vxlan};

/// A random source, Marsaglia's xorshift64: the same packets in every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit.max(1)).unwrap()).unwrap()
    }

    pub fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    pub fn one_in(&mut self, number: usize) -> bool {
        self.below(number) == 0
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// The targets to aim at, in one family.
pub struct Aim {
    pub family: IpFamily,
    pub victim: IpAddr,
    /// The tunnel device's Ethernet address, and those on the container's side.
    macs: Vec<[u8; 6]>,
    /// The peers, with their subnets.
    peers: Vec<(IpAddr, IpNet)>,
    own: IpNet,
    container: IpAddr,
    stranger: IpAddr,
}

/// One attack: packets to be sent in order by one machine.
pub struct Attack {
    pub by: u8,
    pub packets: Vec<Vec<u8>>,
}

impl Aim {
    pub fn new(field: &Field, family: IpFamily) -> Self {
        let device = mac(&field.host(VICTIM), tunnel(family));
        let mut aim = Self::without_ethernet(field, family);
        aim.macs.insert(0, device);
        aim
    }

    /// Aims at tunnels that carry IP packets.
    pub fn without_ethernet(field: &Field, family: IpFamily) -> Self {
        let host = field.host(VICTIM);
        let peers = [FRIEND, LIAR].map(|peer| (field.outer(peer, family), field.subnet(peer, family)));
        Self {
            family,
            victim: field.outer(VICTIM, family),
            macs: vec![mac(&host, "flbr0"), mac(&field.lab.container(VICTIM), "eth0"), [0xff; 6]],
            peers: peers.to_vec(),
            own: field.subnet(VICTIM, family),
            container: field.container(VICTIM, family),
            stranger: field.outer(STRANGER, family),
        }
    }

    /// Chooses the attacker and the address it sends with.
    fn attacker(&self, random: &mut Random) -> (u8, IpAddr) {
        match random.below(7) {
            0 | 1 => (STRANGER, self.stranger),
            2 => (STRANGER, self.nobody(random)),
            // A peer's address can be forged on a wire that lets it: then the lease is what holds.
            3 => (STRANGER, self.peers[random.below(self.peers.len())].0),
            4 => (STRANGER, self.victim),
            _ => (LIAR, self.peers[1].0),
        }
    }

    /// Makes the next attack on a GRE tunnel without a key.
    pub fn gre_attack(&self, random: &mut Random) -> Attack {
        let (by, outer) = self.attacker(random);
        let protocol = ethertype(self.family);
        let inner = self.packet(random, outer);
        let mut payload = match random.below(8) {
            // Under a key that is none of ours, with what we do not speak (checksum, sequence, routing, a version), as
            // another protocol, with Ethernet inside.
            0 => gre(0x2000, protocol, Some(u32::from(random.byte())), &inner),
            1 => gre(u16::from_be_bytes([random.byte(), random.byte()]), protocol, Some(0), &inner),
            2 => gre(0, random.pick(&[0x6558, 0x88be, 0x0800, 0x86dd, 0x880b, 0, 0xffff]), None, &inner),
            3 => gre(0, 0x6558, None, &self.frame(random, outer)),
            _ => gre(0, protocol, None, &inner),
        };
        if random.one_in(4) {
            payload.truncate(random.below(payload.len() + 1));
        }
        Attack { by, packets: self.outer(random, outer, GRE, &payload) }
    }

    /// Makes the next attack.
    pub fn attack(&self, random: &mut Random) -> Attack {
        let (by, outer) = self.attacker(random);
        let frame = self.frame(random, outer);
        let (flags, vni, reserved) = match random.below(8) {
            0 => (8, random.pick(&[0, 2, 0x00ff_ffff, 0x0001_0000]), 0),
            1 => (random.byte(), VNI, random.byte()),
            2 => (8, u32::try_from(random.below(1 << 24)).unwrap(), 0),
            _ => (8, VNI, 0),
        };
        let mut payload = vxlan(flags, vni, reserved, &frame);
        if random.one_in(4) {
            payload.truncate(random.below(payload.len() + 1));
        }
        let source_port = u16::try_from(random.next() & 0xffff).unwrap();
        let mut datagram = udp(outer, self.victim, source_port, PORT, &payload);
        match random.below(32) {
            // Without a checksum, with a wrong one, with a length that lies, shorter than its own header.
            0 => datagram[6..8].fill(0),
            1 => datagram[6..8].fill(0x5a),
            2 => datagram[4..6].copy_from_slice(&u16::try_from(random.below(300)).unwrap().to_be_bytes()),
            3 => datagram.truncate(random.below(8)),
            _ => {}
        }
        Attack { by, packets: self.outer(random, outer, UDP, &datagram) }
    }

    /// Returns an address on the wire that is nobody's.
    fn nobody(&self, random: &mut Random) -> IpAddr {
        let host_part = u8::try_from(100 + random.below(100)).unwrap();
        match self.stranger {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                Ipv4Addr::new(a, b, c, host_part).into()
            }
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() | u128::from(host_part) << 32).into(),
        }
    }

    /// Returns an inner source that `outer` may not use.
    fn source(&self, random: &mut Random, outer: IpAddr) -> IpAddr {
        let lease = self.peers.iter().find(|(address, _)| *address == outer).map(|(_, subnet)| *subnet);
        loop {
            let source = match random.below(6) {
                0 => within(self.own, random),
                1 => within(self.peers[random.below(self.peers.len())].1, random),
                2 => self.container,
                3 => random.pick(&[self.victim, outer, self.peers[0].0]),
                4 => match self.family {
                    IpFamily::V4 => {
                        random.pick(&["8.8.8.8", "127.0.0.1", "0.0.0.0", "255.255.255.255", "10.100.255.7"])
                    }
                    IpFamily::V6 => {
                        random.pick(&["2001:db8::8", "::1", "::", "ff02::1", "fe80::1", "::ffff:10.100.1.1"])
                    }
                }
                .parse()
                .unwrap(),
                _ => match self.family {
                    IpFamily::V4 => Ipv4Addr::from_bits(u32::try_from(random.next() & 0xffff_ffff).unwrap()).into(),
                    IpFamily::V6 => {
                        Ipv6Addr::from_bits(u128::from(random.next()) << 64 | u128::from(random.next())).into()
                    }
                },
            };
            if lease.is_none_or(|lease| !lease.contains(&source)) {
                return source;
            }
        }
    }

    /// Makes the inner frame.
    fn frame(&self, random: &mut Random, outer: IpAddr) -> Vec<u8> {
        let to = random.pick(&self.macs);
        let other = match self.family {
            IpFamily::V4 => IpFamily::V6,
            IpFamily::V6 => IpFamily::V4,
        };
        let ethertype = ethertype(self.family);
        match random.below(12) {
            0 => ethernet(to, 0x0806, &self.arp(random)),
            // Tagged, once and twice.
            1 => {
                let inside = [&[0, 1][..], &ethertype.to_be_bytes(), &self.packet(random, outer)].concat();
                let once = ethernet(to, 0x8100, &inside);
                if random.one_in(2) { once } else { ethernet(to, 0x88a8, &[&[0, 2, 0x81, 0][..], &inside].concat()) }
            }
            // The other family: a valid source of a peer's does not help it. Router advertisements among it.
            2 => ethernet(to, self::ethertype(other), &other_family(random, other)),
            3 => ethernet(
                to,
                random.pick(&[0x6558, 0x8847, 0x0026, 0x88cc, 0x0000, 0xffff]),
                &self.packet(random, outer),
            ),
            // A tunnel in the tunnel: the packet inside is one that would be allowed.
            4 => {
                let (_, subnet) = self.peers[random.below(self.peers.len())];
                let allowed = udp_ip(within(subnet, random), self.container, 1, 2, MAGIC);
                let inside = vxlan(8, VNI, 0, &ethernet(self.macs[0], ethertype, &allowed));
                let source = self.source(random, outer);
                let target = random.pick(&[self.victim, first(self.own), self.container]);
                ethernet(to, ethertype, &udp_ip(source, target, 5, PORT, &inside))
            }
            _ => ethernet(to, ethertype, &self.packet(random, outer)),
        }
    }

    /// Makes an IP packet of the tunnel's family with a source that is not allowed.
    fn packet(&self, random: &mut Random, outer: IpAddr) -> Vec<u8> {
        let source = self.source(random, outer);
        let to = match random.below(6) {
            0 => first(self.own),
            1 => self.victim,
            2 => within(self.own, random),
            3 => match self.family {
                IpFamily::V4 => random.pick(&["255.255.255.255", "224.0.0.1", "127.0.0.1", "192.168.33.1"]),
                IpFamily::V6 => random.pick(&["ff02::1", "ff02::2", "::1", "fd33::1"]),
            }
            .parse()
            .unwrap(),
            _ => self.container,
        };
        let mut packet = match random.below(5) {
            // ICMP echo, TCP, IGMP and the like: the number suffices, nobody should look further.
            0 => ip(source, to, random.pick(&[1, 2, 6, 47, 58, 132]), None, &[&[8, 0, 0, 0][..], MAGIC].concat()),
            1 => ip(source, to, UDP, Some((7, random.below(64) * 8, random.one_in(2))), MAGIC),
            _ => udp_ip(source, to, 1000, 2000, MAGIC),
        };
        if random.one_in(4) {
            // Everything before the source may lie: version and header length, total length, fragment, protocol.
            let end = if self.family == IpFamily::V4 { 12 } else { 8 };
            packet[random.below(end)] = random.byte();
        }
        packet
    }

    fn arp(&self, random: &mut Random) -> Vec<u8> {
        let operation = random.pick(&[1u8, 2, 3, 8]);
        let target = octets(match self.family {
            IpFamily::V4 => random.pick(&[self.container, first(self.own)]),
            IpFamily::V6 => IpAddr::V4(Ipv4Addr::new(10, 100, 1, 1)),
        });
        let spoofed = [10, 100, 1, random.byte()];
        [&[0, 1, 8, 0, 6, 4, 0, operation][..], &crate::packet::MARK, &spoofed, &[0; 6], &target, MAGIC].concat()
    }

    /// Makes the outer packet, whole or in pieces.
    fn outer(&self, random: &mut Random, from: IpAddr, protocol: u8, datagram: &[u8]) -> Vec<Vec<u8>> {
        if datagram.len() < 16 || !random.one_in(5) {
            return vec![ip(from, self.victim, protocol, None, datagram)];
        }
        let id = u16::try_from(1 + (random.next() & 0xfff)).unwrap();
        let size = 8 * (1 + random.below(8));
        let piece = |start: usize, end: usize| {
            let end = end.min(datagram.len());
            ip(from, self.victim, protocol, Some((id, start, end < datagram.len())), &datagram[start..end])
        };
        let starts: Vec<usize> = (0..datagram.len()).step_by(size).collect();
        let mut pieces: Vec<Vec<u8>> = starts.iter().map(|start| piece(*start, start + size)).collect();
        match random.below(5) {
            0 => pieces.reverse(),
            // Overlapping: the second half of a piece again, with what comes after it; and one piece twice.
            1 => pieces.extend(starts.iter().filter(|_| size > 8).map(|start| piece(*start, start + size + 8))),
            2 => pieces.insert(1, piece(starts[random.below(starts.len())], datagram.len())),
            3 => drop(pieces.remove(random.below(pieces.len()))),
            _ => {}
        }
        pieces
    }
}

/// Makes an IP packet of a family that the tunnel does not carry.
fn other_family(random: &mut Random, family: IpFamily) -> Vec<u8> {
    match family {
        IpFamily::V4 => udp_ip("10.100.1.9".parse().unwrap(), "10.100.1.2".parse().unwrap(), 1, 2, MAGIC),
        IpFamily::V6 => {
            let (from, all) = ("fe80::bad".parse().unwrap(), "ff02::1".parse().unwrap());
            // Router advertisement, neighbour solicitation, neighbour advertisement, redirect (RFC 4861).
            let kind = random.pick(&[134u8, 135, 136, 137]);
            let body = [&[kind, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0][..], MAGIC].concat();
            let mut packet = ip(from, all, 58, None, &body);
            // Neighbour discovery only counts with the hop limit that no router lets through.
            packet[7] = 255;
            packet
        }
    }
}

fn ethertype(family: IpFamily) -> u16 {
    match family {
        IpFamily::V4 => 0x0800,
        IpFamily::V6 => 0x86dd,
    }
}

/// Returns some address of `subnet`.
pub fn within(subnet: IpNet, random: &mut Random) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() | u32::from(random.byte())).into(),
        IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() | u128::from(random.byte())).into(),
    }
}

/// Returns the tunnel device's own address.
fn first(subnet: IpNet) -> IpAddr {
    subnet.network()
}

/// Makes a frame for `to`'s container from within `lease_of`'s lease: allowed from there, and from nowhere else. Sent
/// from there it arrives, so that "nothing arrived" means something.
pub fn allowed(field: &Field, to: u8, lease_of: u8, family: IpFamily) -> Vec<u8> {
    let source = within(field.subnet(lease_of, family), &mut Random(7));
    crafted(VNI, mac(&field.host(to), tunnel(family)), source, field.container(to, family))
}

/// Makes a frame with the given VNI and inner addresses.
pub fn crafted(vni: u32, device: [u8; 6], source: IpAddr, target: IpAddr) -> Vec<u8> {
    let inner = udp_ip(source, target, 1, 2, MAGIC);
    vxlan(8, vni, 0, &ethernet(device, ethertype(IpFamily::of(source)), &inner))
}
