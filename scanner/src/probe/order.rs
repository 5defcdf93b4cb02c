//! A pseudo-random order of targets that needs no memory.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

/// Rounds of the Feistel network; four make a good shuffle.
const ROUNDS: u64 = 4;

/// A permutation of the numbers below a bound, computed one number at a time.
#[derive(Debug, Clone)]
pub(super) struct Order {
    len: u32,
    half_bits: u32,
    key: u64,
}

impl Order {
    /// The permutation of `0..len` that `key` stands for.
    pub(super) fn new(len: u32, key: u64) -> Self {
        let bits = u32::BITS - len.saturating_sub(1).leading_zeros();
        Self { len, half_bits: bits.div_ceil(2).max(1), key }
    }

    /// Number of elements.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// The element at `position`, which is below [`Self::len`].
    pub(super) fn at(&self, position: u32) -> u32 {
        let mut element = u64::from(position);
        // The network permutes the next even power of two: at most a few steps lead back into our range.
        loop {
            element = self.encrypt(element);
            if let Some(found) = u32::try_from(element).ok().filter(|element| *element < self.len) {
                return found;
            }
        }
    }

    fn encrypt(&self, element: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (element >> self.half_bits, element & mask);
        for round in 0..ROUNDS {
            let mut hasher = SipHasher13::new_with_keys(self.key, round);
            hasher.write_u64(right);
            (left, right) = (right, left ^ (hasher.finish() & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_comes_once() {
        for len in [1, 2, 3, 5, 16, 17, 1_000, 65_535, 65_536] {
            let order = Order::new(len, 7);
            let mut seen = vec![false; len as usize];
            for position in 0..len {
                let element = order.at(position) as usize;
                assert!(!std::mem::replace(&mut seen[element], true), "{element} of {len} twice");
            }
        }
    }

    #[test]
    fn another_key_is_another_order() {
        let first = |key| (0..100).map(|position| Order::new(65_535, key).at(position)).collect::<Vec<_>>();
        assert_ne!(first(1), first(2));
        let ascending = first(1).windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((20..=80).contains(&ascending), "{ascending} of 99 steps go up");
    }
}
