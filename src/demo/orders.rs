//! Realistic orders, one after the other. Pure: the same seed makes the same orders.
//!
//! Most are small. Some are far over every sensible limit and go to review; a few are damaged, as orders are that a
//! half-updated shop sends, so that the dead letter has something to show.

use serde::Serialize;

/// Customers that order.
const CUSTOMERS: u32 = 2_000;
/// Damaged orders in a thousand.
const BROKEN_PER_MILLE: u32 = 5;
/// Large orders in a thousand.
const LARGE_PER_MILLE: u32 = 20;
/// A large order is worth more than this, in cents; an ordinary one less than a tenth of it.
pub const LARGE_CENTS: u64 = 1_000_000;
/// What is sold, with its price in cents. Nine of the most expensive stay under a tenth of [`LARGE_CENTS`].
const CATALOGUE: &[(&str, u64)] = &[
    ("beans-arabica-1kg", 1_890),
    ("beans-robusta-1kg", 1_490),
    ("cup-espresso", 850),
    ("cup-latte", 1_050),
    ("filter-paper-100", 450),
    ("grinder-hand", 5_900),
    ("kettle-gooseneck", 6_900),
    ("milk-jug", 1_750),
    ("press-french", 3_450),
    ("scale-0.1g", 4_200),
    ("tamper-58mm", 2_990),
];

/// What an order is meant to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Is paid.
    Ordinary,
    /// Is over the limit.
    Large,
    /// Cannot be read.
    Broken,
}

/// One order, as an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What it is meant to show.
    pub kind: Kind,
    /// The customer's id: a customer's orders keep their order.
    pub key: String,
    /// JSON, unless it is a damaged order.
    pub value: Vec<u8>,
}

#[derive(Serialize)]
struct Json<'a> {
    order_id: &'a str,
    customer_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    amount_cents: Option<u64>,
    currency: &'a str,
    items: &'a [Item],
    /// Milliseconds since the Unix epoch.
    ts: i64,
}

#[derive(Serialize)]
struct Item {
    sku: &'static str,
    quantity: u64,
    price_cents: u64,
}

/// Makes orders.
#[derive(Debug)]
pub struct Orders {
    random: fastrand::Rng,
    next: u64,
}

impl Orders {
    /// The orders of this seed.
    pub fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), next: 0 }
    }

    /// The next order, placed at `ts` milliseconds since the Unix epoch.
    pub fn next_at(&mut self, ts: i64) -> Order {
        let order_id = format!("o-{:07}", self.next);
        self.next += 1;
        // Squared: some customers order much more often than others.
        let at = self.random.f64().powi(2) * f64::from(CUSTOMERS);
        let key = format!("c-{:04}", at as u32);
        let kind = match self.random.u32(0..1_000) {
            chance if chance < BROKEN_PER_MILLE => Kind::Broken,
            chance if chance < BROKEN_PER_MILLE + LARGE_PER_MILLE => Kind::Large,
            _ => Kind::Ordinary,
        };
        let items: Vec<Item> = if kind == Kind::Large {
            vec![self.bulk()]
        } else {
            (0..self.random.usize(1..=3)).map(|_| self.item()).collect()
        };
        let amount = items.iter().map(|item| item.quantity * item.price_cents).sum();
        let currency = if self.random.u32(0..10) == 0 { "USD" } else { "EUR" };
        let cut = kind == Kind::Broken && self.random.bool();
        let amount_cents = (kind != Kind::Broken || cut).then_some(amount);
        let json = Json { order_id: &order_id, customer_id: &key, amount_cents, currency, items: &items, ts };
        let mut value = serde_json::to_vec(&json).expect("plain data is always written");
        if cut {
            value.truncate(value.len() * 2 / 3);
        }
        Order { kind, key, value }
    }

    fn item(&mut self) -> Item {
        let (sku, price_cents) = CATALOGUE[self.random.usize(..CATALOGUE.len())];
        Item { sku, quantity: self.random.u64(1..=3), price_cents }
    }

    /// One item, so many times that it passes the limit.
    fn bulk(&mut self) -> Item {
        let item = self.item();
        let least = LARGE_CENTS / item.price_cents + 1;
        Item { quantity: least + self.random.u64(0..=least), ..item }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn amount(json: &serde_json::Value) -> Option<u64> {
        let items = json["items"].as_array()?.iter();
        items.map(|item| Some(item["quantity"].as_u64()? * item["price_cents"].as_u64()?)).sum()
    }

    proptest! {
        #[test]
        fn an_order_is_what_its_kind_says(seed: u64, ts in 0i64..4_000_000_000_000) {
            let mut orders = Orders::new(seed);
            for number in 0..200 {
                let order = orders.next_at(ts);
                let json = serde_json::from_slice::<serde_json::Value>(&order.value);
                if order.kind == Kind::Broken {
                    prop_assert!(json.is_err() || json.is_ok_and(|json| json.get("amount_cents").is_none()));
                    continue;
                }
                let json = json.unwrap();
                prop_assert_eq!(&json["order_id"], &serde_json::json!(format!("o-{number:07}")));
                prop_assert_eq!(json["customer_id"].as_str(), Some(order.key.as_str()));
                prop_assert_eq!(json["ts"].as_i64(), Some(ts));
                let total = json["amount_cents"].as_u64().unwrap();
                prop_assert_eq!(Some(total), amount(&json));
                let expected = if order.kind == Kind::Large { total > LARGE_CENTS } else { total < LARGE_CENTS / 10 };
                prop_assert!(expected);
            }
        }
    }

    #[test]
    fn a_seed_decides_everything_but_the_time() {
        let make = |seed| -> Vec<Order> {
            let mut orders = Orders::new(seed);
            (0..500).map(|ts| orders.next_at(ts)).collect()
        };
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
    }

    #[test]
    fn each_kind_is_as_frequent_as_it_should_be() {
        let mut orders = Orders::new(1);
        let kinds: Vec<Kind> = (0..100_000).map(|_| orders.next_at(0).kind).collect();
        let share = |kind| kinds.iter().filter(|&&other| other == kind).count() as f64 / kinds.len() as f64;
        assert!((0.004..0.006).contains(&share(Kind::Broken)), "{}", share(Kind::Broken));
        assert!((0.018..0.022).contains(&share(Kind::Large)), "{}", share(Kind::Large));
    }
}
