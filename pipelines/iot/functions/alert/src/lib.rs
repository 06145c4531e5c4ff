//! Turns a reading beyond its threshold into an alert, keyed by the device. Other readings are dropped.

use std::borrow::Cow;

use fluxmill_function::{Batch, Error, OrFail, Outcome, function};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Reading<'a> {
    #[serde(borrow)]
    device_id: Cow<'a, str>,
    #[serde(borrow)]
    metric: Cow<'a, str>,
    value: f64,
}

#[derive(Serialize)]
struct Alert<'a> {
    device_id: &'a str,
    metric: &'a str,
    value: f64,
    limit: f64,
    at_ms: i64,
}

/// The handler takes the batch, so that the thresholds are read once and not for each reading.
fn alert(batch: Batch) -> Result<Outcome, Error> {
    let limit = |name: &str| -> Result<f64, Error> {
        batch.config(name).or_reject(format_args!("config: {name} is missing"))?.parse().or_reject(name)
    };
    let (low, high) = (limit("low")?, limit("high")?);
    let metric = batch.config("metric").or_reject("config: metric is missing")?;

    Ok(batch.each(|event, out| {
        let reading: Reading = event.json()?;
        if reading.metric != metric || (low..=high).contains(&reading.value) {
            return Ok(());
        }
        let limit = if reading.value < low { low } else { high };
        out.event_from(&event)
            .key(reading.device_id.as_bytes())
            .set_header("severity", if (reading.value - limit).abs() > high - low { "critical" } else { "warning" })
            .json(&Alert {
                device_id: &reading.device_id,
                metric,
                value: reading.value,
                limit,
                at_ms: event.timestamp(),
            })
    }))
}
function!(alert);

#[cfg(test)]
mod tests {
    use fluxmill_function::testing::{Input, Run, Runner};
    use serde_json::{Value, json};

    use super::*;

    fn call(inputs: impl IntoIterator<Item = Input>) -> Run {
        let runner = Runner::new(alert).config("metric", "temperature").config("low", "2").config("high", "8.5");
        runner.call(inputs).unwrap()
    }

    fn reading(value: f64) -> Input {
        Input::json(&json!({ "device_id": "fridge-1", "metric": "temperature", "value": value })).timestamp(1_000)
    }

    #[test]
    fn readings_within_the_thresholds_are_dropped() {
        let humid = Input::json(&json!({ "device_id": "fridge-1", "metric": "humidity", "value": 99 }));
        let run = call([reading(2.0), reading(8.5), humid]);
        assert_eq!((run.published.len(), run.dropped), (0, vec![0, 1, 2]));
    }

    #[test]
    fn a_reading_beyond_becomes_an_alert_keyed_by_its_device() {
        let run = call([reading(9.25).key("gateway-3").header("severity", "unknown"), reading(-20.0)]);
        let warm = &run.published[0];
        assert_eq!(warm.key.as_deref(), Some(b"fridge-1".as_slice()));
        assert_eq!(warm.headers, [("severity".into(), Some("warning".into()))]);
        assert_eq!(
            warm.json::<Value>(),
            json!({
                "device_id": "fridge-1", "metric": "temperature", "value": 9.25, "limit": 8.5, "at_ms": 1000,
            })
        );
        assert_eq!(run.published[1].header("severity"), Some("critical"));
        assert_eq!(run.published[1].json::<Value>()["limit"], json!(2.0));
    }

    #[test]
    fn a_broken_reading_is_rejected_alone() {
        let run = call([reading(9.0), Input::new("12 C"), reading(9.0)]);
        assert_eq!(run.published.len(), 2);
        assert!(run.failure(1).is_some());
    }

    #[test]
    fn a_missing_threshold_fails_the_batch_and_is_named() {
        let error = Runner::new(alert).config("low", "2").call([reading(9.0)]).unwrap_err();
        assert_eq!(error.reason(), "config: high is missing");
    }

    #[test]
    fn the_events_of_the_readme_end_as_it_says() {
        let run = call(include_str!("../../../events.txt").lines().map(|line| {
            let (key, value) = line.split_once('|').unwrap();
            Input::new(value).key(key)
        }));
        assert_eq!(run.published.iter().map(|event| event.row + 1).collect::<Vec<_>>(), [2, 4]);
        assert_eq!(run.failures.iter().map(|failure| failure.row + 1).collect::<Vec<_>>(), [5]);
        assert_eq!(run.dropped, [0, 2, 5]);
    }
}
