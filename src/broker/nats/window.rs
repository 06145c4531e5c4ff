//! What was published and is not acknowledged: which of it is sent next, and what an answer means. Pure.
//!
//! One connection carries everything, in order, and the server stores in order; so what is not acknowledged when
//! something fails is sent again from the first of it on, in order. What was stored all the same the server knows by
//! its `Nats-Msg-Id`.

use std::collections::VecDeque;

/// What is on its way, numbered without gaps.
#[derive(Debug)]
pub(super) struct Window<T> {
    /// The number of the first.
    first: u64,
    items: VecDeque<Option<T>>,
    /// How many of them, from the first, were sent since the last rewind.
    sent: usize,
    /// How many of those have not ended.
    on_way: usize,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self { first: 0, items: VecDeque::new(), sent: 0, on_way: 0 }
    }
}

impl<T> Window<T> {
    /// Puts something at the end. It is not sent yet.
    pub(super) fn push(&mut self, item: T) {
        self.items.push_back(Some(item));
    }

    /// Whether something was sent and not answered.
    pub(super) fn awaits(&self) -> bool {
        self.on_way > 0
    }

    /// How many were sent since the last rewind and have not ended.
    pub(super) fn on_way(&self) -> usize {
        self.on_way
    }

    /// Whether something is to be sent.
    pub(super) fn is_behind(&self) -> bool {
        self.items.iter().skip(self.sent).any(Option::is_some)
    }

    /// The next that is to be sent, with its number; it counts as sent then.
    pub(super) fn next(&mut self) -> Option<(u64, &mut T)> {
        while matches!(self.items.get(self.sent), Some(None)) {
            self.sent += 1;
        }
        let at = self.sent;
        let item = self.items.get_mut(at)?.as_mut()?;
        self.sent += 1;
        self.on_way += 1;
        Some((self.first + at as u64, item))
    }

    /// What has this number, if it is on its way still.
    pub(super) fn get(&self, number: u64) -> Option<&T> {
        self.items.get(usize::try_from(number.checked_sub(self.first)?).ok()?)?.as_ref()
    }

    /// What has this number has come to its end.
    pub(super) fn end(&mut self, number: u64) -> Option<T> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let item = self.items.get_mut(at)?.take();
        self.on_way -= usize::from(item.is_some() && at < self.sent);
        while matches!(self.items.front(), Some(None)) {
            self.items.pop_front();
            self.first += 1;
            self.sent = self.sent.saturating_sub(1);
        }
        item
    }

    /// Everything that is left is to be sent again, from the first on.
    pub(super) fn rewind(&mut self) {
        (self.sent, self.on_way) = (0, 0);
    }

    /// Takes everything that is left.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.first += self.items.len() as u64;
        self.rewind();
        std::mem::take(&mut self.items).into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Window;

    proptest! {
        /// Against a server that loses what is on its way: everything arrives, and for the first time in order.
        #[test]
        fn everything_arrives_for_the_first_time_in_order(steps in prop::collection::vec(0..5_u8, 1..300)) {
            let (mut window, mut made, mut wire, mut stored) = (Window::default(), 0_u32, Vec::new(), Vec::new());
            let store = |stored: &mut Vec<u32>, item: u32| if !stored.contains(&item) { stored.push(item) };
            for step in steps {
                match step {
                    0 | 1 => { window.push(made); made += 1; }
                    2 => if let Some((number, item)) = window.next() { wire.push((number, *item)); },
                    // Answered.
                    3 if !wire.is_empty() => {
                        let (number, item) = wire.remove(0);
                        store(&mut stored, item);
                        prop_assert_eq!(window.get(number), Some(&item));
                        prop_assert_eq!(window.end(number), Some(item));
                        prop_assert_eq!(window.end(number), None);
                        prop_assert_eq!(window.on_way(), wire.len());
                    }
                    // Lost, the answer or the rest too.
                    _ => {
                        let arrived = wire.len() / 2;
                        wire.drain(..arrived).for_each(|(_, item)| store(&mut stored, item));
                        wire.clear();
                        window.rewind();
                    }
                }
            }
            window.rewind();
            while let Some((number, item)) = window.next() {
                let item = *item;
                store(&mut stored, item);
                window.end(number);
            }
            prop_assert!(!window.awaits() && !window.is_behind());
            prop_assert_eq!(stored, (0..made).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_given_up_is_given_back() {
        let mut window = Window::default();
        ["a", "b", "c"].into_iter().for_each(|item| window.push(item));
        let first = window.next().map(|(number, _)| number);
        assert_eq!(first.and_then(|number| window.end(number)), Some("a"));
        assert!(!window.awaits());
        assert_eq!(window.drain().collect::<Vec<_>>(), ["b", "c"]);
        assert!(window.next().is_none());
    }
}
