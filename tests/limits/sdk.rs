//! The components that are in the repository, built with the SDK for Rust, in the sandbox.

use std::path::Path;
use std::time::Duration;

use fluxmill::event::{ColumnSource, EventBatch, FailureKind, HeaderSource, Outcome};
use fluxmill::function::{CallError, Fault, Transform};
use fluxmill::spec::FunctionLimits;

use super::support::{LIMITS, LONG, Row, as_fault, batch, block_on, call, call_with, engine, try_load};

/// What a pipeline has when its file says nothing, but for the time: tests run on busy machines.
const USUAL: FunctionLimits = FunctionLimits { timeout: LONG, memory: 64 << 20, output: 16 << 20 };

fn component(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path).with_extension("wasm")).unwrap()
}

fn guest(name: &str) -> Vec<u8> {
    component(&format!("tests/guests/{name}"))
}

fn row(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(&[u8], Option<&[u8]>)]) -> Row {
    let headers = headers.iter().map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect();
    (key.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec), headers, 1_700_000_000_000)
}

fn values(values: &[&str]) -> EventBatch {
    batch(&values.iter().map(|value| row(Some(b"key"), Some(value.as_bytes()), &[])).collect::<Vec<_>>())
}

/// Nulls and empties, bytes that are no text, headers with duplicates; more rows than a byte of validity covers.
fn odd() -> Vec<Row> {
    let every_byte: Vec<u8> = (0..=u8::MAX).collect();
    let headers: &[(&[u8], Option<&[u8]>)] =
        &[(b"h", Some(b"1")), (b"\xff", None), (b"h", Some(b"1")), (b"", Some(b""))];
    let kinds = [
        row(Some(&every_byte), Some(&every_byte), headers),
        row(None, Some(b""), &[]),
        row(Some(b""), None, &headers[..1]),
        row(None, None, &[]),
    ];
    (0..41).map(|at| kinds[at % 4].clone()).collect()
}

fn column(source: &ColumnSource) -> &arrow_array::BinaryArray {
    match source {
        ColumnSource::Replace(column) => column,
        ColumnSource::Inherit => panic!("nothing crossed back"),
    }
}

#[test]
fn a_forwarded_batch_sends_no_column_back() {
    let outcome = call(&guest("identity"), &batch(&odd())).unwrap();
    assert_eq!(outcome.causes, (0..41).collect::<Vec<_>>());
    assert!(matches!(outcome.keys, ColumnSource::Inherit) && matches!(outcome.values, ColumnSource::Inherit));
    assert!(matches!(outcome.headers, HeaderSource::Inherit) && outcome.outputs.is_empty());
}

#[test]
fn columns_cross_both_ways_byte_for_byte() {
    let input = batch(&odd());
    let outcome = call(&guest("columns"), &input).unwrap();
    assert_eq!((column(&outcome.keys), column(&outcome.values)), (&input.keys, &input.values));
    let HeaderSource::Replace(headers) = &outcome.headers else { panic!("headers did not cross back") };
    for at in 0..input.len() {
        assert!(headers.row(at).eq(input.headers.row(at)), "headers of row {at}");
    }
}

#[test]
fn json_is_read_and_written() {
    let order = |cents: u32| {
        format!(
            r#"{{"order_id":"o","customer_id":"c","amount_cents":{cents},"currency":"EUR","status":"new","items":[],"ts":0,"note":""}}"#
        )
    };
    let outcome = call(&guest("json"), &values(&[&order(999), "{", &order(2000)])).unwrap();
    assert_eq!((&outcome.causes[..], outcome.failures[0].row), (&[2][..], 1));
    assert!(outcome.failures[0].reason.starts_with("not the expected JSON: EOF"), "{:?}", outcome.failures);
    let priced = std::str::from_utf8(column(&outcome.values).value(0)).unwrap();
    assert!(priced.ends_with(r#""note":"","total_with_vat_cents":2380}"#), "{priced}");
    assert!(matches!(outcome.keys, ColumnSource::Inherit), "keys crossed back for nothing");
}

#[test]
fn the_example_reads_its_config_and_finds_its_outputs() {
    let order = |currency: &str, cents: u32| {
        format!(
            r#"{{"order_id":"o-1","customer_id":"c-1","amount_cents":{cents},"currency":"{currency}","items":[{{"quantity":2}}]}}"#
        )
    };
    let engine = engine();
    let function = try_load(&engine, &component("pipelines/orders/functions/payment"), LIMITS).unwrap();
    let input = values(&[&order("EUR", 1999), &order("EUR", 100_001), &order("XYZ", 1999)]);
    let outcome = block_on(&engine, function.call(&input)).unwrap();
    assert_eq!((&outcome.causes[..], &outcome.outputs[..]), (&[0, 1][..], &[0, 1][..]));
    assert_eq!(outcome.failures[0].reason, r#"order o-1: "XYZ" is none of EUR"#);
    assert_eq!(column(&outcome.values).value(1), order("EUR", 100_001).as_bytes());

    // `notification` has no such outputs and no need of them.
    let paid = std::str::from_utf8(column(&outcome.values).value(0)).unwrap();
    let told = call(&component("pipelines/orders/functions/notification"), &values(&[paid])).unwrap();
    assert!(String::from_utf8_lossy(column(&told.values).value(0)).contains("We received 19.99 EUR for 2 pieces."));
}

fn faulty(words: &[&str]) -> Result<Outcome, CallError> {
    call_with(&guest("faulty"), USUAL, &values(words))
}

#[test]
fn single_events_fail_as_they_ask() {
    let outcome = faulty(&["1 plain", "reject 2", "retry 3", "drop 4", "twice 5", "tombstone 6"]).unwrap();
    assert_eq!(outcome.causes, [0, 4, 4, 5]);
    let failed: Vec<_> = outcome.failures.iter().map(|failure| (failure.row, failure.kind)).collect();
    assert_eq!(failed, [(1, FailureKind::Reject), (2, FailureKind::Retry)]);
    assert!(arrow_array::Array::is_null(column(&outcome.values), 3), "no tombstone");
}

#[test]
fn batches_fail_as_they_ask() {
    assert!(
        matches!(faulty(&["a", "retry-batch"]), Err(CallError::Retry(reason)) if reason == "row 1 retries the batch")
    );
    assert!(matches!(faulty(&["reject-batch"]), Err(CallError::Reject(reason)) if reason == "row 0 rejects the batch"));
}

#[test]
fn each_harm_has_its_kind() {
    for (word, kind) in [
        ("trap", Fault::Trap),
        ("panic", Fault::Trap),
        ("stack", Fault::Trap),
        ("memory", Fault::Memory),
        ("output", Fault::Output),
        ("lie-cause", Fault::Output),
        ("lie-output", Fault::Output),
        ("lie-length", Fault::Output),
        ("lie-offset", Fault::Output),
        ("lie-failure", Fault::Output),
    ] {
        let (fault, reason) = as_fault(faulty(&["fine", word]));
        assert_eq!(fault, kind, "{word}: {reason}");
        if word == "panic" {
            assert!(reason.contains("row 1 panics"), "the panic's message is lost: {reason}");
        }
    }
    let short = FunctionLimits { timeout: Duration::from_millis(100), ..USUAL };
    assert_eq!(as_fault(call_with(&guest("faulty"), short, &values(&["loop"]))).0, Fault::Timeout);
}

#[test]
fn a_flood_of_log_lines_is_capped_and_harms_nothing() {
    let (outcome, text) = super::support::logged(|| faulty(&["log"]));
    assert_eq!(outcome.unwrap().causes, [0]);
    assert!(text.len() < 1 << 20, "{} bytes of 10 MiB were logged", text.len());
}
