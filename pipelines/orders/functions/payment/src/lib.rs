//! Takes the payment of an order. Orders over a limit go to review as they came.

use std::borrow::Cow;

use fluxmill_function::{Emit, Error, Event, OrFail, function};
use serde::{Deserialize, Serialize};

/// Orders over this go to review, unless `config: review_over_cents` says otherwise.
const REVIEW_OVER_CENTS: u64 = 100_000;

#[derive(Deserialize)]
struct Order<'a> {
    #[serde(borrow)]
    order_id: Cow<'a, str>,
    #[serde(borrow)]
    customer_id: Cow<'a, str>,
    amount_cents: u64,
    #[serde(borrow)]
    currency: Cow<'a, str>,
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    quantity: u32,
}

#[derive(Serialize)]
struct Payment<'a> {
    payment_id: Cow<'a, str>,
    order_id: &'a str,
    customer_id: &'a str,
    amount_cents: u64,
    currency: &'a str,
    pieces: u64,
}

fn payment(event: Event, out: &mut Emit) -> Result<(), Error> {
    if event.is_tombstone() {
        out.forward(&event); // A withdrawn order: whoever comes next must know.
        return Ok(());
    }
    let order: Order = event.json()?;
    validate(&order, out.config("currencies").unwrap_or("EUR"))?;

    if order.amount_cents > review_over(out)? {
        out.to("review").forward(&event);
        return Ok(());
    }
    let payment = Payment {
        payment_id: format!("p-{}", order.order_id).into(),
        order_id: &order.order_id,
        customer_id: &order.customer_id,
        amount_cents: order.amount_cents,
        currency: &order.currency,
        pieces: order.items.iter().map(|item| u64::from(item.quantity)).sum(),
    };
    let mut approved = out.to("approved").event_from(&event).header("payment-status", "approved");
    if event.key().is_none() {
        approved = approved.key(order.customer_id.as_bytes());
    }
    approved.json(&payment)
}
function!(payment);

fn review_over(out: &Emit) -> Result<u64, Error> {
    match out.config("review_over_cents") {
        Some(text) => text.parse().or_reject("config: review_over_cents"),
        None => Ok(REVIEW_OVER_CENTS),
    }
}

fn validate(order: &Order, currencies: &str) -> Result<(), Error> {
    let refuse = |reason: String| Err(Error::reject(reason));
    if order.order_id.is_empty() || order.customer_id.is_empty() {
        return refuse("an order needs an order_id and a customer_id".to_owned());
    }
    if order.amount_cents == 0 {
        return refuse(format!("order {}: nothing to pay", order.order_id));
    }
    if order.items.is_empty() || order.items.iter().any(|item| item.quantity == 0) {
        return refuse(format!("order {}: an order needs items, each with a quantity", order.order_id));
    }
    if !currencies.split(',').any(|currency| currency.trim() == order.currency) {
        return refuse(format!("order {}: {:?} is none of {currencies}", order.order_id, order.currency));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use fluxmill_function::FailureKind;
    use fluxmill_function::testing::{Input, Run, Runner};
    use serde_json::{Value, json};

    use super::*;

    fn order(amount_cents: u64) -> Value {
        json!({
            "order_id": "o-1", "customer_id": "c-7", "amount_cents": amount_cents, "currency": "EUR",
            "items": [{ "sku": "tea", "quantity": 2 }, { "sku": "cup", "quantity": 1 }], "note": "with a \"bow\"",
        })
    }

    fn call(inputs: impl IntoIterator<Item = Input>) -> Run {
        let runner = Runner::new(payment).outputs(["approved", "review"]);
        runner.config("currencies", "EUR, USD").config("review_over_cents", "50000").call(inputs).unwrap()
    }

    #[test]
    fn an_order_becomes_a_payment_with_its_key_and_headers() {
        let run = call([Input::json(&order(1999)).key("c-7").header("trace", "a").header("trace", "b")]);
        let paid = run.to("approved").next().unwrap();
        assert_eq!(paid.key.as_deref(), Some(b"c-7".as_slice()));
        let headers: Vec<_> = paid.headers.iter().map(|(name, _)| name.as_slice()).collect();
        assert_eq!(headers, [b"trace".as_slice(), b"trace", b"payment-status"]);
        assert_eq!(
            paid.json::<Value>(),
            json!({
                "payment_id": "p-o-1", "order_id": "o-1", "customer_id": "c-7", "amount_cents": 1999,
                "currency": "EUR", "pieces": 3,
            })
        );
    }

    #[test]
    fn an_order_without_a_key_gets_its_customer_as_key() {
        let run = call([Input::json(&order(1999))]);
        assert_eq!(run.published[0].key.as_deref(), Some(b"c-7".as_slice()));
    }

    #[test]
    fn an_order_over_the_limit_goes_to_review_untouched() {
        let large = Input::json(&order(50_001)).key([0xff]).header("tag", "1").null_header("tag");
        let run = call([Input::json(&order(50_000)), large]);
        assert_eq!(run.to("approved").count(), 1);
        let review = run.to("review").next().unwrap();
        assert_eq!(review.json::<Value>(), order(50_001));
        assert_eq!(review.key, Some(vec![0xff]));
        assert_eq!(review.headers, [("tag".into(), Some("1".into())), ("tag".into(), None)]);
    }

    #[test]
    fn a_withdrawn_order_is_passed_on() {
        let run = call([Input::tombstone().key("c-7")]);
        let event = run.to("approved").next().unwrap();
        assert_eq!((event.key.as_deref(), &event.value), (Some(b"c-7".as_slice()), &None));
    }

    #[test]
    fn bad_orders_are_rejected_with_a_reason() {
        let with = |name: &str, value: Value| {
            let mut order = order(1999);
            order[name] = value;
            Input::json(&order)
        };
        let run = call([
            Input::new("{\"order_id\":\"o-1\""),
            with("order_id", json!("")),
            with("amount_cents", json!(0)),
            with("amount_cents", json!(-5)),
            with("items", json!([])),
            with("items", json!([{ "sku": "tea", "quantity": 0 }])),
            with("currency", json!("XYZ")),
        ]);
        assert!(run.published.is_empty());
        assert!(run.failures.iter().all(|failure| failure.kind == FailureKind::Reject));
        let reasons: Vec<_> = run.failures.iter().map(|failure| failure.reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "not the expected JSON: EOF while parsing an object at line 1 column 17",
                "an order needs an order_id and a customer_id",
                "order o-1: nothing to pay",
                "not the expected JSON: invalid value: integer `-5`, expected u64 at line 1 column 18",
                "order o-1: an order needs items, each with a quantity",
                "order o-1: an order needs items, each with a quantity",
                "order o-1: \"XYZ\" is none of EUR, USD",
            ]
        );
    }

    #[test]
    fn the_events_of_the_readme_end_as_it_says() {
        let events = include_str!("../../../events.txt").lines().map(|line| {
            let (key, value) = line.split_once('|').unwrap();
            Input::new(value).key(key)
        });
        let run = Runner::new(payment)
            .outputs(["approved", "review"])
            .config("currencies", "EUR, USD")
            .config("review_over_cents", "100000")
            .call(events)
            .unwrap();
        assert_eq!(run.to("approved").map(|event| event.row + 1).collect::<Vec<_>>(), [1, 2, 4, 8]);
        assert_eq!(run.to("review").map(|event| event.row + 1).collect::<Vec<_>>(), [3]);
        assert_eq!(run.failures.iter().map(|failure| failure.row + 1).collect::<Vec<_>>(), [5, 6, 7]);
    }
}
