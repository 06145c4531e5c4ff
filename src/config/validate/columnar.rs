//! librdkafka properties under `client: columnar`: which ones Fluxmill's own client honours, which go on to the
//! librdkafka client that keeps the group, and which cannot be had with it. Three tables, one property in each row.
//!
//! What a property of both clients means must hold for both. So one that concerns the connections that events take, and
//! that the columnar client has not, is refused, though librdkafka's connections could have it.

use std::time::Duration;

use super::foreign::FOREIGN;
use super::librdkafka::{Property, Takes};
use super::properties::{Written, bounded, flag};
use crate::config::error::{Kind, Mistake};
use crate::spec::{ColumnarSettings, Compression};

/// A property that the columnar client honours.
pub(crate) struct Honoured {
    /// Its name in [`ColumnarSettings`].
    pub(crate) name: &'static str,
    /// The bounds, where they are closer than librdkafka's: each size bounds memory, and nothing is asked without a pause.
    within: Option<(i64, i64)>,
    /// What it means.
    pub(crate) doc: &'static str,
    /// Shows it.
    pub(crate) show: fn(&ColumnarSettings) -> String,
    /// Sets it to a value that was checked.
    set: fn(&mut ColumnarSettings, &str),
}

impl Honoured {
    /// The names of the property.
    fn is(&self, property: &Property) -> bool {
        let mine = Property::find(self.name).map(Property::canonical);
        mine == Some(property.canonical())
    }

    /// Its other name, if it has one.
    pub(crate) fn other_name(&self) -> Option<&'static str> {
        let mut known = super::librdkafka::KNOWN.iter();
        known.find(|property| property.name != self.name && self.is(property)).map(|property| property.name)
    }

    /// The least and the most.
    pub(crate) fn bounds(&self) -> Option<(i64, i64)> {
        let takes = Property::find(self.name).map(|property| property.takes);
        self.within.or(match takes {
            Some(Takes::Whole(min, max) | Takes::Decimal(min, max)) => Some((min, max)),
            _ => None,
        })
    }
}

const GIB: i64 = 1 << 30;

/// A whole number that was checked; 0 stands for none.
fn number(text: &str) -> u64 {
    text.parse().unwrap_or_default()
}

fn bytes(text: &str) -> usize {
    usize::try_from(number(text)).unwrap_or(usize::MAX)
}

/// Milliseconds, with or without a fraction.
fn millis(text: &str) -> Duration {
    Duration::try_from_secs_f64(text.parse::<f64>().unwrap_or_default() / 1000.0).unwrap_or_default()
}

fn show_millis(duration: Duration) -> String {
    (duration.as_secs_f64() * 1000.0).to_string()
}

/// Every property that is honoured.
pub(crate) const HONOURED: &[Honoured] = &[
    Honoured {
        name: "fetch.max.bytes",
        within: Some((1, GIB)),
        doc: "about how many bytes one fetch response may hold",
        show: |settings| settings.fetch_bytes.to_string(),
        set: |settings, text| settings.fetch_bytes = bytes(text),
    },
    Honoured {
        name: "max.partition.fetch.bytes",
        within: None,
        doc: "about how many of them may be of one partition",
        show: |settings| settings.partition_fetch_bytes.to_string(),
        set: |settings, text| settings.partition_fetch_bytes = bytes(text),
    },
    Honoured {
        name: "fetch.min.bytes",
        within: None,
        doc: "how many bytes the broker waits for before it answers",
        show: |settings| settings.fetch_min_bytes.to_string(),
        set: |settings, text| settings.fetch_min_bytes = i32::try_from(number(text)).unwrap_or(i32::MAX),
    },
    Honoured {
        name: "fetch.wait.max.ms",
        within: None,
        doc: "how long it waits for them",
        show: |settings| show_millis(settings.fetch_wait),
        set: |settings, text| settings.fetch_wait = millis(text),
    },
    Honoured {
        name: "client.rack",
        within: None,
        doc: "where this process runs, so that a replica nearby may serve it (KIP-392)",
        show: |settings| settings.rack.clone().unwrap_or_default(),
        set: |settings, text| settings.rack = (!text.is_empty()).then(|| text.to_owned()),
    },
    Honoured {
        name: "receive.message.max.bytes",
        within: Some((1000, GIB)),
        doc: "the largest response that is accepted; left out, it grows with `fetch.max.bytes` and `message.max.bytes`",
        show: |settings| settings.response_bytes_max.to_string(),
        set: |settings, text| settings.response_bytes_max = bytes(text),
    },
    Honoured {
        name: "compression.type",
        within: None,
        doc: "how record batches are compressed: `none`, `gzip`, `snappy`, `lz4` or `zstd`",
        show: |settings| compression_name(settings.compression).to_owned(),
        set: |settings, text| settings.compression = compression(text),
    },
    Honoured {
        name: "linger.ms",
        within: None,
        doc: "how long a record batch that is not full waits for more events",
        show: |settings| show_millis(settings.linger),
        set: |settings, text| settings.linger = millis(text),
    },
    Honoured {
        name: "batch.size",
        within: Some((1, GIB)),
        doc: "about how many bytes a record batch may hold, before compression; one event is the least",
        show: |settings| settings.batch_bytes.to_string(),
        set: |settings, text| settings.batch_bytes = bytes(text),
    },
    Honoured {
        name: "message.max.bytes",
        within: None,
        doc: "the largest event that is sent",
        show: |settings| settings.message_bytes_max.to_string(),
        set: |settings, text| settings.message_bytes_max = bytes(text),
    },
    Honoured {
        name: "queue.buffering.max.kbytes",
        within: Some((1, 4 * GIB / 1024)),
        doc: "how many kilobytes may wait for acknowledgements",
        show: |settings| (settings.buffer_bytes / 1024).to_string(),
        set: |settings, text| settings.buffer_bytes = bytes(text).saturating_mul(1024),
    },
    Honoured {
        name: "request.timeout.ms",
        within: None,
        doc: "how long the broker may wait for its replicas",
        show: |settings| show_millis(settings.request_timeout),
        set: |settings, text| settings.request_timeout = millis(text),
    },
    Honoured {
        name: "socket.timeout.ms",
        within: None,
        doc: "how long an answer may take, on top of what the request lets the broker wait",
        show: |settings| show_millis(settings.socket_timeout),
        set: |settings, text| settings.socket_timeout = millis(text),
    },
    Honoured {
        name: "transaction.timeout.ms",
        within: None,
        doc: "with `delivery: exactly_once`, how long a transaction may take before the broker aborts it, and how long what a crash left open may hold readers up",
        show: |settings| show_millis(settings.transaction_timeout),
        set: |settings, text| settings.transaction_timeout = millis(text),
    },
    Honoured {
        name: "socket.connection.setup.timeout.ms",
        within: None,
        doc: "how long a connection may take to be set up",
        show: |settings| show_millis(settings.connect_timeout),
        set: |settings, text| settings.connect_timeout = millis(text),
    },
    Honoured {
        name: "reconnect.backoff.ms",
        within: Some((1, 3_600_000)),
        doc: "the first wait before another attempt; it doubles",
        show: |settings| show_millis(settings.reconnect_backoff.0),
        set: |settings, text| settings.reconnect_backoff.0 = millis(text),
    },
    Honoured {
        name: "reconnect.backoff.max.ms",
        within: Some((1, 3_600_000)),
        doc: "the longest wait before another attempt",
        show: |settings| show_millis(settings.reconnect_backoff.1),
        set: |settings, text| settings.reconnect_backoff.1 = millis(text),
    },
    Honoured {
        name: "metadata.max.age.ms",
        within: Some((1000, 86_400_000)),
        doc: "how old the known leaders may be",
        show: |settings| show_millis(settings.metadata_age_max),
        set: |settings, text| settings.metadata_age_max = millis(text),
    },
];

fn compression(text: &str) -> Compression {
    match text.to_ascii_lowercase().as_str() {
        "gzip" => Compression::Gzip,
        "snappy" => Compression::Snappy,
        "lz4" => Compression::Lz4,
        "zstd" => Compression::Zstd,
        _ => Compression::None,
    }
}

fn compression_name(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Gzip => "gzip",
        Compression::Snappy => "snappy",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    }
}

/// Each setting by the name of its property, in the order of the reference.
pub fn columnar_settings(settings: &ColumnarSettings) -> Vec<(&'static str, String)> {
    HONOURED.iter().map(|honoured| (honoured.name, (honoured.show)(settings))).collect()
}

/// Properties that go to the librdkafka client alone: groups, commits, the cluster's topics, and its log.
pub(crate) const PASSED_ON: &[&str] = &[
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "max.poll.interval.ms",
    "coordinator.query.interval.ms",
    // The group's new topics and partitions are found by it.
    "topic.metadata.refresh.interval.ms",
    "topic.blacklist",
    "debug",
    "log_level",
    "log.thread.name",
    "log.connection.close",
    "statistics.interval.ms",
    "enable.metrics.push",
    "enable.random.seed",
    "internal.termination.signal",
    "builtin.features",
    // No longer used by librdkafka itself.
    "socket.blocking.max.ms",
    "reconnect.backoff.jitter.ms",
];

/// What is left of a connection's properties for the columnar client; notes those that it cannot honour.
pub(super) fn settings(written: &[Written<'_>], mistakes: &mut Vec<Mistake>) -> ColumnarSettings {
    let mut settings = ColumnarSettings::default();
    for one in written {
        if let Some(honoured) = HONOURED.iter().find(|honoured| honoured.is(one.property)) {
            let value = one.text.parse::<i64>().ok();
            let within = match (honoured.within, value) {
                (Some(bounds), Some(value)) => bounded(one.property.name, value, bounds),
                _ => Ok(()),
            };
            match within {
                Ok(()) => (honoured.set)(&mut settings, one.text),
                Err((kind, message, help)) => {
                    let message = format!("{message} under `client: columnar`");
                    let help = format!("{help}, or `client: librdkafka`");
                    mistakes.push(Mistake::at(kind, one.span.clone(), message).help(help));
                }
            }
        } else if let Some(foreign) = FOREIGN.iter().find(|foreign| foreign.name == one.property.name)
            && !foreign.same.is_some_and(|same| is_same(one, same))
        {
            let message = format!("`{}` is not for the columnar client: {}", foreign.name, foreign.why);
            let help = format!("{}, or write `client: librdkafka`", foreign.instead);
            mistakes.push(Mistake::at(Kind::NotColumnar, one.span.clone(), message).help(help));
        }
    }
    if !written.iter().any(|one| one.property.name == "receive.message.max.bytes") {
        let least = settings.fetch_bytes.max(settings.message_bytes_max).saturating_add(RESPONSE_FRAME);
        settings.response_bytes_max = settings.response_bytes_max.max(least);
    }
    settings
}

/// What a response may hold besides records, in bytes: librdkafka's rule.
pub(super) const RESPONSE_FRAME: usize = 512;

fn is_same(written: &Written<'_>, same: &str) -> bool {
    match written.property.takes {
        Takes::Flag => flag(written.text) == flag(same),
        _ => written.text.eq_ignore_ascii_case(same),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::validate::librdkafka::KNOWN;
    use crate::config::validate::properties::REFUSED;
    use crate::spec::DATA_PROPERTIES;

    fn set(properties: &[(&str, &str)]) -> (ColumnarSettings, Vec<Mistake>) {
        let written: Vec<_> = properties
            .iter()
            .map(|(name, text)| Written { property: Property::find(name).expect(name), text, span: &(0..1) })
            .collect();
        let mut mistakes = Vec::new();
        let settings = settings(&written, &mut mistakes);
        (settings, mistakes)
    }

    #[test]
    fn every_property_is_decided_once() {
        for property in KNOWN.iter().filter(|property| property.takes != Takes::Program) {
            let refused =
                REFUSED.iter().any(|refused| refused.name == property.name && refused.name != "isolation.level");
            let passed = PASSED_ON.contains(&property.name) || property.name == "isolation.level";
            let decided = [
                refused,
                passed,
                HONOURED.iter().any(|honoured| honoured.is(property)),
                FOREIGN.iter().any(|foreign| foreign.name == property.name),
            ];
            assert_eq!(decided.iter().filter(|one| **one).count(), 1, "{}: {decided:?}", property.name);
        }
        let named = PASSED_ON.iter().copied().chain(FOREIGN.iter().map(|foreign| foreign.name));
        for name in named.chain(HONOURED.iter().map(|honoured| honoured.name)).chain(DATA_PROPERTIES.iter().copied()) {
            assert!(Property::find(name).is_some(), "{name}");
        }
        for name in DATA_PROPERTIES {
            let property = Property::find(name).expect(name);
            assert!(HONOURED.iter().any(|honoured| honoured.is(property)), "{name}");
        }
    }

    #[test]
    fn nothing_written_is_the_default() {
        assert_eq!(set(&[]).0, ColumnarSettings::default());
    }

    #[test]
    fn every_honoured_property_is_set_and_shown() {
        for honoured in HONOURED {
            let value = match honoured.name {
                "compression.type" => "zstd",
                "client.rack" => "rack-7",
                _ => "54321",
            };
            for name in [Some(honoured.name), honoured.other_name()].into_iter().flatten() {
                let (settings, mistakes) = set(&[(name, value)]);
                assert!(mistakes.is_empty(), "{name}: {mistakes:?}");
                assert_eq!((honoured.show)(&settings), value, "{name}");
                let changed = columnar_settings(&settings)
                    .into_iter()
                    .zip(columnar_settings(&ColumnarSettings::default()))
                    .filter(|(new, old)| new != old);
                assert_eq!(changed.map(|(new, _)| new.0).collect::<Vec<_>>(), [honoured.name]);
            }
        }
    }

    #[test]
    fn names_units_and_bounds() {
        let (settings, mistakes) = set(&[
            ("fetch.message.max.bytes", "2000"),
            ("queue.buffering.max.kbytes", "3"),
            ("queue.buffering.max.ms", "0.25"),
            ("compression.codec", "LZ4"),
            ("client.rack", ""),
            ("fetch.wait.max.ms", "0"),
            ("reconnect.backoff.max.ms", "9000"),
        ]);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let expected = ColumnarSettings {
            partition_fetch_bytes: 2000,
            buffer_bytes: 3072,
            linger: Duration::from_micros(250),
            compression: Compression::Lz4,
            fetch_wait: Duration::ZERO,
            reconnect_backoff: (Duration::from_millis(100), Duration::from_secs(9)),
            ..ColumnarSettings::default()
        };
        assert_eq!(settings, expected);
        for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
            assert_eq!(compression_name(set(&[("compression.codec", codec)]).0.compression), codec);
        }
        for (name, value) in [
            ("fetch.max.bytes", "0"),
            ("fetch.max.bytes", "1073741825"),
            ("batch.size", "1073741825"),
            ("receive.message.max.bytes", "1073741825"),
            ("queue.buffering.max.kbytes", "4194305"),
            ("reconnect.backoff.ms", "0"),
            ("metadata.max.age.ms", "999"),
        ] {
            let (settings, mistakes) = set(&[(name, value)]);
            assert_eq!(mistakes.iter().map(|mistake| mistake.kind).collect::<Vec<_>>(), [Kind::OutOfBounds], "{name}");
            assert_eq!(settings, ColumnarSettings::default());
        }
    }

    #[test]
    fn the_largest_response_grows_with_what_it_must_hold() {
        assert_eq!(set(&[("fetch.max.bytes", "200000000")]).0.response_bytes_max, 200_000_512);
        assert_eq!(set(&[("message.max.bytes", "300000000")]).0.response_bytes_max, 300_000_512);
        let written = [("fetch.max.bytes", "1000"), ("receive.message.max.bytes", "5000")];
        assert_eq!(set(&written).0.response_bytes_max, 5000);
    }

    #[test]
    fn what_holds_anyway_may_be_written() {
        for foreign in FOREIGN {
            let Some(same) = foreign.same else { continue };
            assert!(set(&[(foreign.name, same)]).1.is_empty(), "{}", foreign.name);
        }
        assert!(set(&[("check.crcs", "1"), ("check.crcs", "T")]).1.is_empty());
        assert_eq!(set(&[("check.crcs", "false")]).1[0].kind, Kind::NotColumnar);
    }
}
