//! Tells a customer about a payment.

use std::borrow::Cow;

use fluxmill_function::{Emit, Error, Event, function};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Payment<'a> {
    #[serde(borrow)]
    order_id: Cow<'a, str>,
    #[serde(borrow)]
    customer_id: Cow<'a, str>,
    amount_cents: u64,
    #[serde(borrow)]
    currency: Cow<'a, str>,
    pieces: u64,
}

#[derive(Serialize)]
struct Notification<'a> {
    order_id: &'a str,
    customer_id: &'a str,
    from: &'a str,
    subject: String,
    text: String,
}

fn notification(event: Event, out: &mut Emit) -> Result<(), Error> {
    if event.is_tombstone() {
        return Ok(()); // A withdrawn order: nothing to tell.
    }
    let payment: Payment = event.json()?;
    let (whole, cents) = (payment.amount_cents / 100, payment.amount_cents % 100);
    let pieces = if payment.pieces == 1 { "piece" } else { "pieces" };
    let notification = Notification {
        order_id: &payment.order_id,
        customer_id: &payment.customer_id,
        from: out.config("from").unwrap_or("shop@example.com"),
        subject: format!("Your order {} is paid", payment.order_id),
        text: format!(
            "We received {whole}.{cents:02} {} for {} {pieces}. Thank you!",
            payment.currency, payment.pieces
        ),
    };
    out.event_from(&event).header("channel", "email").json(&notification)
}
function!(notification);

#[cfg(test)]
mod tests {
    use fluxmill_function::testing::{Input, Runner};
    use serde_json::{Value, json};

    use super::*;

    fn paid(pieces: u64) -> Input {
        Input::json(&json!({
            "payment_id": "p-o-1", "order_id": "o-1", "customer_id": "c-7", "amount_cents": 1905,
            "currency": "EUR", "pieces": pieces,
        }))
    }

    #[test]
    fn a_payment_becomes_a_notification_with_its_key_and_headers() {
        let runner = Runner::new(notification).config("from", "tea@example.com");
        let run = runner.call([paid(3).key("c-7").header("payment-status", "approved"), paid(1)]).unwrap();
        let told = &run.published[0];
        assert_eq!(told.key.as_deref(), Some(b"c-7".as_slice()));
        assert_eq!((told.header("payment-status"), told.header("channel")), (Some("approved"), Some("email")));
        assert_eq!(
            told.json::<Value>(),
            json!({
                "order_id": "o-1", "customer_id": "c-7", "from": "tea@example.com",
                "subject": "Your order o-1 is paid",
                "text": "We received 19.05 EUR for 3 pieces. Thank you!",
            })
        );
        assert!(run.published[1].text().contains("for 1 piece."));
    }

    #[test]
    fn nothing_is_told_of_a_withdrawn_order() {
        let run = Runner::new(notification).call([Input::tombstone().key("c-7")]).unwrap();
        assert_eq!((run.published.len(), run.dropped), (0, vec![0]));
    }

    #[test]
    fn what_is_no_payment_is_rejected() {
        let run = Runner::new(notification).call([Input::new("{}")]).unwrap();
        assert!(run.failures[0].reason.contains("missing field `order_id`"));
    }
}
