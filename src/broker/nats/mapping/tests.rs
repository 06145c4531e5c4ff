use proptest::prelude::*;

use super::*;

type Owned = Vec<(Vec<u8>, Option<Vec<u8>>)>;

fn pairs(headers: &Owned) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> + Clone {
    headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref()))
}

fn owned(decoded: &Decoded<'_>) -> Owned {
    let bytes = |bytes: &Cow<'_, [u8]>| bytes.to_vec();
    decoded.headers.iter().map(|(name, value)| (bytes(name), value.as_ref().map(bytes))).collect()
}

/// Over the wire and back: what a server and another client make of it.
fn wire(map: &HeaderMap) -> HeaderMap {
    let mut other = HeaderMap::new();
    for (name, values) in map.iter() {
        for value in values {
            let text: &str = value.as_str();
            assert!(!text.contains(['\r', '\n']));
            // Clients trim.
            other.append(AsRef::<str>::as_ref(name), text.trim());
        }
    }
    other
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(b"a".to_vec()),
        Just(b"A".to_vec()),
        Just(b"nats-msg-id".to_vec()),
        Just(b"Fluxmill-Key".to_vec()),
        Just(b"fluxmill-headers".to_vec()),
        Just(b"fluxmill-reason".to_vec()),
        Just(Vec::new()),
        "[a-zA-Z:!=,%-]{1,6}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..6),
    ]
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        Just(b"base64:".to_vec()),
        Just(b"base64:AAAA".to_vec()),
        Just(b" edge ".to_vec()),
        Just("\u{2028}ü\u{85}".as_bytes().to_vec()),
        ".{0,8}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..12),
    ]
}

proptest! {
    /// An event that goes over NATS is the same event afterwards.
    #[test]
    fn what_was_encoded_is_decoded(
        key in prop::option::of(content()),
        is_tombstone: bool,
        timestamp: i64,
        headers in prop::collection::vec((name(), prop::option::of(content())), 0..8),
    ) {
        let map = wire(&encode(key.as_deref(), is_tombstone, timestamp, pairs(&headers)));
        let decoded = decode(&map);
        prop_assert_eq!(decoded.key.as_deref(), key.as_deref());
        prop_assert_eq!(decoded.is_tombstone, is_tombstone);
        prop_assert_eq!(decoded.timestamp, Some(timestamp));
        prop_assert_eq!(owned(&decoded), headers);
    }

    /// A message of somebody else keeps its headers when it goes on over NATS, in some order of the names.
    #[test]
    fn a_foreign_message_is_the_same_after_two_hops(
        headers in prop::collection::vec(("[a-c]", "[ -~]{0,6}"), 0..6),
    ) {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.append(name.as_str(), value.trim()));
        let first = owned(&decode(&map));
        let again = wire(&encode(None, false, 0, pairs(&first)));
        prop_assert_eq!(owned(&decode(&again)), first);
    }

    /// Whatever stands in the headers, reading them does not fail.
    #[test]
    fn nothing_in_headers_is_fatal(key in "[ -~]{0,12}", list in "[ -~]{0,30}", time in "[ -~]{0,20}") {
        let mut map = HeaderMap::new();
        map.insert(KEY, key.as_str());
        map.insert(HEADERS, list.as_str());
        map.insert(TIMESTAMP, time.as_str());
        decode(&map);
    }

    /// Every key makes one legal token, different keys different ones, and the token says the key again.
    #[test]
    fn keys_are_tokens(key in prop::collection::vec(any::<u8>(), 1..40), other in prop::collection::vec(any::<u8>(), 1..3)) {
        let made = Subject::new("a.{key}.b").with(Some(&key)).unwrap();
        prop_assert_eq!(made.split('.').count(), 3);
        prop_assert!(made.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'*' | b'>')));
        let made = Subject::new("a.{key}").with(Some(&key)).unwrap();
        prop_assert_eq!(&*last_token(&made), &key[..]);
        if key != other {
            prop_assert_ne!(Subject::new("{key}").with(Some(&key)), Subject::new("{key}").with(Some(&other)));
        }
    }
}

#[test]
fn simple_headers_are_ordinary_headers_of_nats() {
    let headers = vec![(b"trace".to_vec(), Some(b"00-ab".to_vec()))];
    let map = encode(Some(b"order-7"), false, 5, pairs(&headers));
    let shown = |name: &str| map.get(name).map(|value| value.as_str().to_owned());
    assert_eq!(shown("trace").as_deref(), Some("00-ab"));
    assert_eq!(shown(KEY).as_deref(), Some("order-7"));
    assert_eq!((shown(HEADERS), shown(TOMBSTONE)), (None, None));
}

#[test]
fn what_the_server_is_told_is_no_header_of_the_event() {
    let mut map = HeaderMap::new();
    map.insert("Nats-Msg-Id", "x");
    map.insert("nats-expected-stream", "x");
    map.insert("own", "y");
    assert_eq!(owned(&decode(&map)), vec![(b"own".to_vec(), Some(b"y".to_vec()))]);
}

#[test]
fn an_event_without_a_key_has_a_token_all_the_same() {
    assert_eq!(Subject::new("orders.{key}").with(None).as_deref(), Ok("orders._"));
    assert_eq!(Subject::new("orders.{key}").with(Some(b"a.b*")).as_deref(), Ok("orders.a%2Eb%2A"));
    assert_eq!(Subject::new("orders").with(Some(b"a")).as_deref(), Ok("orders"));
    assert!(Subject::new("{key}").with(Some(&[b'x'; 2000])).unwrap_err().contains("2000 bytes"));
}

#[test]
fn ids_are_told_apart_by_every_part() {
    assert_eq!(message_id("ORDERS", 7, "shop.payment", "approved", 0), "ORDERS:7:shop.payment:approved:0");
}
