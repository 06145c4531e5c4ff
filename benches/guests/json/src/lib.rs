//! Parses orders, drops those under 10.00 and gives the others a price with tax.

use fluxmill_function::{Emit, Error, Event, function};
use order::Order;

fn price(event: Event, out: &mut Emit) -> Result<(), Error> {
    let mut order: Order = event.json()?;
    if !order.price() {
        return Ok(());
    }
    out.event_from(&event).json(&order)
}
function!(price);

#[cfg(test)]
mod tests {
    use fluxmill_function::testing::{Input, Runner};

    fn order(amount: i64) -> Input {
        Input::new(format!(
            r#"{{"order_id":"o","customer_id":"c","amount_cents":{amount},"currency":"EUR","status":"new","note":"\n"}}"#
        ))
    }

    #[test]
    fn small_orders_are_dropped_and_others_priced() {
        let run = Runner::new(super::price).call([order(999), order(1000)]).unwrap();
        assert_eq!(run.dropped, [0]);
        assert_eq!(
            run.published[0].text(),
            r#"{"order_id":"o","customer_id":"c","amount_cents":1000,"currency":"EUR","status":"priced","note":"\n","total_with_vat_cents":1190}"#
        );
    }
}
