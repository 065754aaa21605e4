//! Choosing a free subnet: pure, so that the choice can be tested without a store.

use ipnet::IpNet;

use crate::pool::{Pool, to_bits};

/// No subnet of the pool is free.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {capacity} subnets of {network} are leased")]
pub struct Exhausted {
    /// The network whose pool is used up.
    pub network: IpNet,
    /// The number of subnets the pool has.
    pub capacity: u128,
}

/// Chooses a free subnet of `pool`: one that overlaps nothing in `leased` nor, as long as another is free, in
/// `remembered` (subnets whose lease expired but whose owner may come back).
///
/// `random` picks among *all* free ones, so that agents choosing at once seldom choose the same; the last free subnet
/// is always found.
pub fn choose(pool: &Pool, leased: &[IpNet], remembered: &[IpNet], random: u64) -> Result<IpNet, Exhausted> {
    let mut cautious = occupied(pool, leased);
    cautious.extend(occupied(pool, remembered));
    pick(pool, cautious, random)
        .or_else(|| pick(pool, occupied(pool, leased), random))
        .ok_or(Exhausted { network: pool.network(), capacity: pool.capacity() })
}

/// Returns the runs of subnet numbers `[first, last]` that `nets` overlap.
fn occupied(pool: &Pool, nets: &[IpNet]) -> Vec<(u128, u128)> {
    let (Some(first), size) = (pool.nth(0), 1_u128 << (pool.family().bits() - pool.subnet_len())) else {
        return Vec::new();
    };
    let base = to_bits(first.addr());
    let capacity = pool.capacity();
    nets.iter()
        .filter(|net| net.addr().is_ipv4() == first.addr().is_ipv4())
        .filter_map(|net| {
            let (start, end) = (to_bits(net.network()), to_bits(net.broadcast()));
            let run_end = end.checked_sub(base)? / size;
            let run_start = start.saturating_sub(base) / size;
            (run_start < capacity).then_some((run_start, run_end.min(capacity - 1)))
        })
        .collect()
}

/// Returns the `random`-th of the subnets outside all `occupied` runs.
fn pick(pool: &Pool, mut occupied: Vec<(u128, u128)>, random: u64) -> Option<IpNet> {
    occupied.sort_unstable();
    let mut gaps = Vec::new();
    let mut next = 0;
    for (start, end) in occupied {
        if start > next {
            gaps.push((next, start));
        }
        next = next.max(end + 1);
    }
    if next < pool.capacity() {
        gaps.push((next, pool.capacity()));
    }
    let free: u128 = gaps.iter().map(|(start, end)| end - start).sum();
    let mut index = u128::from(random).checked_rem(free)?;
    for (start, end) in gaps {
        if index < end - start {
            return pool.nth(start + index);
        }
        index -= end - start;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(network: &str, len: u64) -> Pool {
        Pool::new(network.parse().unwrap(), Some(len), None, None).unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_last_free_subnet_is_found_and_then_exhaustion_is_said() {
        let pool = pool("10.0.0.0/22", 24);
        let leased = nets(&["10.0.1.0/24", "10.0.3.0/24"]);
        assert_eq!(choose(&pool, &leased, &[], 7), Ok("10.0.2.0/24".parse().unwrap()));
        let leased = nets(&["10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"]);
        assert_eq!(choose(&pool, &leased, &[], 7), Err(Exhausted { network: pool.network(), capacity: 3 }));
    }

    #[test]
    fn a_remembered_subnet_goes_to_another_only_when_no_other_is_free() {
        let pool = pool("10.0.0.0/22", 24);
        let remembered = nets(&["10.0.1.0/24", "10.0.2.0/24"]);
        for random in 0..9 {
            assert_eq!(choose(&pool, &[], &remembered, random), Ok("10.0.3.0/24".parse().unwrap()));
        }
        let leased = nets(&["10.0.3.0/24"]);
        assert!(choose(&pool, &leased, &remembered, 0).is_ok());
    }

    #[test]
    fn a_whole_ipv6_range_does_not_overflow() {
        let pool = Pool::new("::/0".parse().unwrap(), Some(126), None, None).unwrap();
        assert!(choose(&pool, &nets(&["8000::/1"]), &[], u64::MAX).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_chosen_overlaps_nothing(leased in prop::collection::vec((0_u32..1024, 20_u8..=28), 0..40), random: u64) {
            let pool = pool("10.0.0.0/14", 24);
            let leased: Vec<IpNet> = leased.into_iter().map(|(index, len)| {
                let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + index * 256);
                IpNet::new(address.into(), len).unwrap().trunc()
            }).collect();
            if let Ok(chosen) = choose(&pool, &leased, &[], random) {
                prop_assert!(pool.holds(chosen));
                prop_assert!(leased.iter().all(|net| !net.contains(&chosen) && !chosen.contains(net)));
            }
        }

        #[test]
        fn every_subnet_is_handed_out_exactly_once(seed: u64) {
            let pool = pool("10.0.0.0/20", 26);
            let mut leased = Vec::new();
            for step in 0..pool.capacity() {
                let random = seed.rotate_left(u32::try_from(step % 64).unwrap());
                leased.push(choose(&pool, &leased, &[], random).unwrap());
            }
            leased.sort();
            leased.dedup();
            prop_assert_eq!(u128::try_from(leased.len()).unwrap(), pool.capacity());
            prop_assert!(choose(&pool, &leased, &[], seed).is_err());
        }
    }
}
