//! Which version of each API a connection speaks.

use kafka_protocol::messages::ApiKey;

use super::response::{ApiRange, Call};

/// What a broker speaks.
#[derive(Clone, Debug, Default)]
pub(super) struct Versions(Vec<ApiRange>);

impl Versions {
    /// From a broker's answer to ApiVersions.
    pub(super) fn new(mut apis: Vec<ApiRange>) -> Self {
        apis.sort_unstable_by_key(|range| range.api);
        Self(apis)
    }

    /// The newest version of a request that both sides speak.
    ///
    /// # Errors
    /// When there is none: why, for a person.
    pub(super) fn negotiate<R: Call>(&self) -> Result<i16, String> {
        let (oldest, newest) = R::VERSIONS.into_inner();
        let Ok(found) = self.0.binary_search_by_key(&(R::API as i16), |range| range.api) else {
            return Err(unsupported(R::API, "does not know it"));
        };
        let range = self.0[found];
        let version = newest.min(range.max);
        if version < oldest.max(range.min) {
            let what = format!("speaks versions {} to {}, not {oldest} to {newest}", range.min, range.max);
            return Err(unsupported(R::API, &what));
        }
        Ok(version)
    }
}

fn unsupported(api: ApiKey, what: &str) -> String {
    format!("{api:?} is needed, and this broker {what}; use `client: librdkafka` with it")
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::FetchRequest;

    use super::*;

    fn fetch(min: i16, max: i16) -> Result<i16, String> {
        let other = ApiRange { api: ApiKey::ApiVersions as i16, min: 0, max: 3 };
        Versions::new(vec![other, ApiRange { api: ApiKey::Fetch as i16, min, max }]).negotiate::<FetchRequest>()
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        assert_eq!(fetch(0, 11), Ok(11));
        assert_eq!(fetch(4, 17), Ok(12));
        assert_eq!(fetch(12, 12), Ok(12));
    }

    #[test]
    fn a_broker_without_a_common_version_is_named_with_what_to_do() {
        for range in [(0, 10), (13, 17), (5, 4), (i16::MAX, i16::MIN)] {
            let reason = fetch(range.0, range.1).unwrap_err();
            assert!(reason.contains("`client: librdkafka`"), "{reason}");
        }
        let reason = Versions::default().negotiate::<FetchRequest>().unwrap_err();
        assert_eq!(reason, "Fetch is needed, and this broker does not know it; use `client: librdkafka` with it");
    }
}
