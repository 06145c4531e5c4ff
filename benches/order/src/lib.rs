//! An order, and the work of a usual function: parse it, drop the small ones, give the others a price with tax.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Orders below this are dropped: 19 % of those that the measurements make.
pub const LEAST_CENTS: i64 = 1000;

/// A part of an order.
#[derive(Debug, Serialize, Deserialize)]
pub struct Item<'a> {
    /// What.
    #[serde(borrow)]
    pub sku: Cow<'a, str>,
    /// How many.
    pub qty: i64,
}

/// An order; the smallest ones have no more than the first five fields.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order<'a> {
    /// Its number.
    #[serde(borrow)]
    pub order_id: Cow<'a, str>,
    /// Who ordered.
    #[serde(borrow)]
    pub customer_id: Cow<'a, str>,
    /// What it costs.
    pub amount_cents: i64,
    /// The currency of that.
    #[serde(borrow)]
    pub currency: Cow<'a, str>,
    /// How far it is.
    #[serde(borrow)]
    pub status: Cow<'a, str>,
    /// What was ordered.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub items: Option<Vec<Item<'a>>>,
    /// When, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ts: Option<i64>,
    /// What the customer wrote.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub note: Option<Cow<'a, str>>,
    /// The field that is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_with_vat_cents: Option<i64>,
}

impl Order<'_> {
    /// Adds the price with tax; `false` means that the order is dropped.
    pub fn price(&mut self) -> bool {
        if self.amount_cents < LEAST_CENTS {
            return false;
        }
        self.total_with_vat_cents = Some(self.amount_cents * 119 / 100);
        self.status = Cow::Borrowed("priced");
        true
    }
}
