//! Forwards every event, as columns: all that a function can return crosses back.

use fluxmill_function::{Batch, BinarySource, Error, HeaderSource, Outcome, function};

fn columns(batch: Batch) -> Result<Outcome, Error> {
    let rows = batch.len() as u32;
    let columns = batch.into_columns();
    Ok(Outcome {
        causes: (0..rows).collect(),
        outputs: Vec::new(),
        keys: BinarySource::Replace(columns.keys),
        values: BinarySource::Replace(columns.values),
        headers: HeaderSource::Replace(columns.headers),
        failures: Vec::new(),
    })
}
function!(columns);

#[cfg(test)]
mod tests {
    use fluxmill_function::testing::{Input, Runner};

    #[test]
    fn every_byte_comes_back() {
        let inputs = [Input::new("a").key([0xff]).header("h", "1").null_header("h"), Input::tombstone()];
        let run = Runner::new(super::columns).call(inputs).unwrap();
        assert_eq!(run.published[0].key, Some(vec![0xff]));
        assert_eq!(run.published[0].headers, [("h".into(), Some("1".into())), ("h".into(), None)]);
        assert_eq!((&run.published[1].key, &run.published[1].value), (&None, &None));
    }
}
