//! Sizes, durations and ranges of durations as users write them: a whole number and its unit. Pure; refuses bare
//! numbers.

use std::time::Duration;

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UnitError {
    /// A number without a unit.
    Bare(String),
    /// A number with a unit that does not exist; the unit.
    Unknown(String),
    /// No number, or one that does not fit.
    Malformed,
}

/// The units of sizes, each with its bytes.
pub(crate) const SIZES: &[(&str, u64)] = &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// The units of durations, each with its milliseconds.
pub(crate) const DURATIONS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// Reads a size, in bytes.
pub(crate) fn size(text: &str) -> Result<u64, UnitError> {
    quantity(text, SIZES)
}

/// Reads a duration, in milliseconds.
pub(crate) fn millis(text: &str) -> Result<u64, UnitError> {
    quantity(text, DURATIONS)
}

/// Reads `100ms..10s`: two durations, in milliseconds.
pub(crate) fn range(text: &str) -> Result<(u64, u64), UnitError> {
    let (low, high) = text.split_once("..").ok_or(UnitError::Malformed)?;
    Ok((millis(low)?, millis(high)?))
}

fn quantity(text: &str, units: &[(&str, u64)]) -> Result<u64, UnitError> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    if number.is_empty() {
        return Err(UnitError::Malformed);
    }
    if unit.is_empty() {
        return Err(UnitError::Bare(number.to_owned()));
    }
    if !unit.chars().all(char::is_alphabetic) {
        return Err(UnitError::Malformed);
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(UnitError::Unknown(unit.to_owned()));
    };
    let number: u64 = number.parse().map_err(|_| UnitError::Malformed)?;
    number.checked_mul(*factor).ok_or(UnitError::Malformed)
}

/// The unit that was probably meant.
pub(crate) fn unit_for(wrong: &str, units: &'static [(&'static str, u64)]) -> Option<&'static str> {
    let known = |name: &str| units.iter().map(|(unit, _)| *unit).find(|unit| *unit == name);
    let lower = wrong.to_lowercase();
    let meant = match lower.as_str() {
        "byte" | "bytes" => "B",
        "k" | "kb" | "ki" => "KiB",
        "m" | "mb" | "mi" if known("MiB").is_some() => "MiB",
        "g" | "gb" | "gi" => "GiB",
        "msec" | "millis" | "milliseconds" => "ms",
        "sec" | "secs" | "second" | "seconds" => "s",
        "min" | "mins" | "minute" | "minutes" => "m",
        "hour" | "hours" | "hr" => "h",
        _ => return units.iter().map(|(unit, _)| *unit).find(|unit| unit.to_lowercase() == lower),
    };
    known(meant)
}

/// A size in its largest whole unit.
pub(crate) fn show_size(bytes: u64) -> String {
    show(bytes, SIZES)
}

/// A duration in its largest whole unit; parts of a millisecond are left out.
pub(crate) fn show_duration(duration: Duration) -> String {
    show_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// A duration in its largest whole unit.
pub(crate) fn show_millis(millis: u64) -> String {
    show(millis, DURATIONS)
}

fn show(value: u64, units: &[(&str, u64)]) -> String {
    let whole = units.iter().rev().find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor));
    match whole {
        Some((unit, factor)) => format!("{}{unit}", value / factor),
        None => format!("{value}{}", units[0].0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_unit() {
        assert_eq!(size("7B"), Ok(7));
        assert_eq!(size("1 KiB"), Ok(1024));
        assert_eq!(size("3MiB"), Ok(3 * 1024 * 1024));
        assert_eq!(size("2GiB"), Ok(2 * 1024 * 1024 * 1024));
        assert_eq!(millis("5ms"), Ok(5));
        assert_eq!(millis("2s"), Ok(2_000));
        assert_eq!(millis("3m"), Ok(180_000));
        assert_eq!(millis("1h"), Ok(3_600_000));
        assert_eq!(range("100ms..10s"), Ok((100, 10_000)));
    }

    #[test]
    fn what_is_refused() {
        assert_eq!(size("64"), Err(UnitError::Bare("64".to_owned())));
        assert_eq!(size("64MB"), Err(UnitError::Unknown("MB".to_owned())));
        assert_eq!(size("1.5MiB"), Err(UnitError::Malformed));
        assert_eq!(size("-1MiB"), Err(UnitError::Malformed));
        assert_eq!(size("99999999999999999999GiB"), Err(UnitError::Malformed));
        assert_eq!(size("18446744073709551615GiB"), Err(UnitError::Malformed));
        assert_eq!(millis(""), Err(UnitError::Malformed));
        assert_eq!(range("100ms"), Err(UnitError::Malformed));
        assert_eq!(unit_for("MB", SIZES), Some("MiB"));
        assert_eq!(unit_for("min", DURATIONS), Some("m"));
        assert_eq!(unit_for("S", DURATIONS), Some("s"));
        assert_eq!(unit_for("parsec", DURATIONS), None);
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(bytes in any::<u64>(), duration in any::<u64>()) {
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
            prop_assert_eq!(millis(&show_millis(duration)), Ok(duration));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,20}") {
            let _ = (size(&text), range(&text));
            if let Ok(value) = millis(&text) {
                prop_assert_eq!(millis(&show_millis(value)), Ok(value));
            }
        }

        #[test]
        fn a_number_and_a_unit(number in 0u64..1_000_000, unit in 0usize..4) {
            prop_assert_eq!(size(&format!("{number}{}", SIZES[unit].0)), Ok(number * SIZES[unit].1));
            prop_assert_eq!(millis(&format!("{number}{}", DURATIONS[unit].0)), Ok(number * DURATIONS[unit].1));
            prop_assert_eq!(size(&number.to_string()), Err(UnitError::Bare(number.to_string())));
        }
    }
}
