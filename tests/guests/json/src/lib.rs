//! Parses orders, drops those under 10.00 and gives the others a price with tax: the work of a usual function.

use std::borrow::Cow;

use fluxmill_function::{Emit, Error, Event, function};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    sku: Cow<'a, str>,
    qty: i64,
}

#[derive(Serialize, Deserialize)]
struct Order<'a> {
    #[serde(borrow)]
    order_id: Cow<'a, str>,
    #[serde(borrow)]
    customer_id: Cow<'a, str>,
    amount_cents: i64,
    #[serde(borrow)]
    currency: Cow<'a, str>,
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow)]
    items: Vec<Item<'a>>,
    ts: i64,
    #[serde(borrow)]
    note: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_with_vat_cents: Option<i64>,
}

fn price(event: Event, out: &mut Emit) -> Result<(), Error> {
    let mut order: Order = event.json()?;
    if order.amount_cents < 1000 {
        return Ok(());
    }
    order.total_with_vat_cents = Some(order.amount_cents * 119 / 100);
    order.status = Cow::Borrowed("priced");
    out.event_from(&event).json(&order)
}
function!(price);

#[cfg(test)]
mod tests {
    use fluxmill_function::testing::{Input, Runner};

    fn order(amount: i64) -> Input {
        Input::new(format!(
            r#"{{"order_id":"o","customer_id":"c","amount_cents":{amount},"currency":"EUR","status":"new","items":[],"ts":0,"note":"\n"}}"#
        ))
    }

    #[test]
    fn small_orders_are_dropped_and_others_priced() {
        let run = Runner::new(super::price).call([order(999), order(1000)]).unwrap();
        assert_eq!(run.dropped, [0]);
        assert_eq!(
            run.published[0].text(),
            r#"{"order_id":"o","customer_id":"c","amount_cents":1000,"currency":"EUR","status":"priced","items":[],"ts":0,"note":"\n","total_with_vat_cents":1190}"#
        );
    }
}
