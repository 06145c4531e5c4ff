//! Drops the events of 190 of 1,000 customers, by their key, and forwards the others as they are.

use fluxmill_function::{Emit, Error, Event, function};

/// The first customer whose events are kept: keys are `c-0000` to `c-0999`.
const FIRST_KEPT: &[u8] = b"c-0190";

fn filter(event: Event, out: &mut Emit) -> Result<(), Error> {
    if event.key().is_some_and(|key| key >= FIRST_KEPT) {
        out.forward(&event);
    }
    Ok(())
}
function!(filter);

#[cfg(test)]
mod tests {
    use fluxmill_function::testing::{Input, Runner};

    #[test]
    fn the_first_customers_are_dropped() {
        let inputs = ["c-0000", "c-0189", "c-0190", "c-0999"].map(|key| Input::new("order").key(key));
        let run = Runner::new(super::filter).call(inputs).unwrap();
        assert_eq!(run.dropped, [0, 1]);
        assert_eq!(run.published[0].key, Some(b"c-0190".to_vec()));
        assert_eq!(run.published[1].text(), "order");
    }
}
