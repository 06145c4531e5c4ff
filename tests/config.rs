//! Every message that a wrong pipeline file can cause: each `tests/config/<name>.yaml` has its messages beside it in
//! `<name>.err`. `FLUXMILL_BLESS=1` writes them anew. Files in `tests/config/good` must load; what `explain` and
//! `graph` say of them is beside them, too.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fluxmill::cli::explain::explain;
use fluxmill::cli::graph::{Format, draw};
use fluxmill::config::{self, ConfigErrors, Kind, Loaded};
use fluxmill::spec::{
    BatchLimits, ColumnarSettings, CommitSpec, Compression, ConnectionSpec, Discard, FunctionLimits, Guarantee,
    KafkaClient, LastResort, NatsAuth, NatsKey, Order, Retention, SaslMechanism, SaslSpec, SourceSpec, StartOffset,
    Storage, TargetSpec, TokenSource, WhenMissing,
};

fn environment(name: &str) -> Option<String> {
    match name {
        "BROKERS" => Some("one:9092,two:9092".to_owned()),
        "PASSWORD" => Some("hunter2".to_owned()),
        "EMPTY" => Some(String::new()),
        "MANY" => Some("lots".to_owned()),
        "TRICKY" => Some("x\n  then: drop } ${PASSWORD}".to_owned()),
        _ => None,
    }
}

fn load(path: &Path) -> Result<Loaded, ConfigErrors> {
    config::load(path, &environment)
}

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder of the test files");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(!files.is_empty(), "{folder} is empty");
    files
}

/// Compares with the golden file, or writes it.
fn golden(path: &Path, found: &str) -> Result<(), String> {
    if std::env::var_os("FLUXMILL_BLESS").is_some() {
        fs::write(path, found).expect("write the golden file");
        return Ok(());
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    if expected == found {
        Ok(())
    } else {
        Err(format!("{}\n--- expected\n{expected}\n--- found\n{found}", path.display()))
    }
}

fn all(results: impl Iterator<Item = Result<(), String>>) {
    let failed: Vec<_> = results.filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} golden files differ:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn every_message_is_as_recorded() {
    all(files("tests/config").iter().map(|path| match load(path) {
        Ok(_) => Err(format!("{} has no mistake", path.display())),
        Err(errors) => golden(&path.with_extension("err"), &errors.render(false, 100)),
    }));
}

#[test]
fn every_kind_of_mistake_has_a_file() {
    let mut seen = BTreeSet::new();
    for path in files("tests/config") {
        let errors = load(&path).expect_err("a file with mistakes");
        seen.extend(errors.mistakes().iter().map(|mistake| mistake.kind.code()));
    }
    let elsewhere = [Kind::Unreadable, Kind::TooLarge, Kind::Function, Kind::Topic, Kind::Connection].map(Kind::code);
    let missing: Vec<_> = Kind::ALL
        .iter()
        .map(|kind| kind.code())
        .filter(|code| !seen.contains(code) && !elsewhere.contains(code))
        .collect();
    assert!(missing.is_empty(), "no file in tests/config shows {missing:?}");
}

#[test]
fn every_mistake_says_where_and_what_to_do() {
    for path in files("tests/config") {
        let errors = load(&path).expect_err("a file with mistakes");
        for mistake in errors.mistakes() {
            assert!(mistake.help.is_some(), "{}: {} has no help", path.display(), mistake.message);
            let whole = matches!(mistake.kind, Kind::Empty | Kind::NotText | Kind::Unreadable);
            assert_eq!(mistake.span.is_none(), whole, "{}: {}", path.display(), mistake.message);
        }
    }
}

#[test]
fn good_files_load_and_read_as_recorded() {
    all(files("tests/config/good").iter().flat_map(|path| match load(path) {
        Err(errors) => vec![Err(errors.render(false, 100))],
        Ok(loaded) => {
            // The machine's cores are not the same everywhere.
            let mut spec = loaded.spec;
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            for pipeline in spec.pipelines.iter_mut().filter(|pipeline| pipeline.lanes == cores) {
                pipeline.lanes = 2;
            }
            vec![
                golden(&path.with_extension("explain"), &explain(&spec)),
                golden(&path.with_extension("ascii"), &draw(&spec, Format::Ascii)),
                golden(&path.with_extension("mermaid"), &draw(&spec, Format::Mermaid)),
                golden(&path.with_extension("dot"), &draw(&spec, Format::Dot)),
            ]
        }
    }));
}

#[test]
fn secrets_are_shown_nowhere() {
    for path in files("tests/config").iter().chain(&files("tests/config/good")) {
        let shown = match load(path) {
            Ok(loaded) => format!("{} {:?}", explain(&loaded.spec), loaded.spec),
            Err(errors) => format!("{} {errors} {errors:?}", errors.render(true, 80)),
        };
        for secret in ["hunter2", "hunter3"] {
            assert!(!shown.contains(secret), "{} shows a secret:\n{shown}", path.display());
        }
    }
}

#[test]
fn defaults() {
    let loaded = load(Path::new("tests/config/good/smallest.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
    let spec = &loaded.spec;
    assert_eq!(spec.name, "good", "the folder's name");
    assert!(!spec.allow_loop);
    let payment = &spec.pipelines[0];
    let source = payment.source.kafka().expect("input from Kafka");
    assert_eq!((source.connection.as_str(), source.group.as_str()), ("main", "good.payment"));
    assert_eq!((&source.instance, source.start), (&None, StartOffset::Earliest));
    let batch = BatchLimits { max_events: 1000, max_bytes: 1 << 20, max_wait: Duration::ZERO };
    assert_eq!(payment.batch, batch);
    assert_eq!((payment.order, payment.guarantee), (Order::Partition, Guarantee::AtLeastOnce));
    assert_eq!(payment.lanes, std::thread::available_parallelism().map_or(1, usize::from).min(256));
    let function = payment.function.as_ref().expect("a function");
    let limits = FunctionLimits { timeout: Duration::from_secs(1), memory: 64 << 20, output: 16 << 20 };
    assert_eq!((function.limits, &function.digest), (limits, &None));
    assert_eq!(payment.outputs[0].name, "default");
    assert_eq!(payment.outputs[0].target, kafka("main", "payments"));
    let retry = payment.on_error.retry;
    assert_eq!((retry.attempts, retry.backoff_min), (3, Duration::from_millis(100)));
    assert_eq!(retry.backoff_max, Duration::from_secs(10));
    assert!(matches!(&payment.on_error.then, LastResort::DeadLetter(to) if *to == kafka("main", "good.payment.dead")));
    let created: Vec<_> = spec.topics.iter().map(|topic| (topic.topic.as_str(), topic.partitions)).collect();
    assert_eq!(created, [("good.payment.dead", 1), ("good.notification.dead", 1)]);
    let connection = spec.connections["main"].kafka().expect("a connection to Kafka");
    assert_eq!(connection.brokers, ["localhost:9092"]);
    assert_eq!(connection.client, KafkaClient::Columnar(ColumnarSettings::default()));
    assert!(connection.tls.is_none() && connection.sasl.is_none() && connection.properties.is_empty());
}

fn kafka(connection: &str, topic: &str) -> TargetSpec {
    TargetSpec::Kafka { connection: connection.to_owned(), topic: topic.to_owned() }
}

#[test]
fn everything_that_can_be_said() {
    let loaded = load(Path::new("tests/config/good/everything.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
    let spec = &loaded.spec;
    let main = spec.connections["main"].kafka().expect("a connection to Kafka");
    assert_eq!(main.brokers, ["one:9092", "two:9092"]);
    let tls = main.tls.as_ref().expect("tls");
    assert_eq!(tls.ca.as_deref(), Some(Path::new("tests/config/good/ca.pem")));
    let Some(SaslSpec::Password { mechanism, password, .. }) = &main.sasl else { panic!("{:?}", main.sasl) };
    assert_eq!((*mechanism, password.0.as_str()), (SaslMechanism::ScramSha512, "hunter3"));
    let edge = spec.connections["edge"].kafka().expect("a connection to Kafka");
    let Some(SaslSpec::Password { password, .. }) = &edge.sasl else { panic!("{:?}", edge.sasl) };
    assert_eq!(password.0, "hunter2");
    let names: Vec<_> = spec.pipelines[0].outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["review", "approved"], "in the order of the file");
    let function = spec.pipelines[0].function.as_ref().expect("a function");
    assert_eq!(function.config["tricky"], "x\n  then: drop } ${PASSWORD}", "a variable's value is text for good");
    assert_eq!(function.limits.memory, 16 * 64 * 1024, "whole pages");
    assert_eq!(function.digest.as_deref().map(str::len), Some(64));
    let source = spec.pipelines[0].source.kafka().expect("input from Kafka");
    assert_eq!(source.start, StartOffset::Time(1_769_817_600_000));
    assert_eq!(spec.pipelines[0].commit, CommitSpec { interval: Duration::from_secs(1), max_events: None });
    assert_eq!(spec.pipelines[0].on_error.when_missing, WhenMissing::Wait);
}

#[test]
fn clients_properties_and_tokens() {
    let loaded = load(Path::new("tests/config/good/tokens.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
    let fresh = loaded.spec.connections["fresh"].kafka().expect("a connection to Kafka");
    let Some(SaslSpec::Token(TokenSource::File(path))) = &fresh.sasl else { panic!("{:?}", fresh.sasl) };
    assert_eq!(path, Path::new("tests/config/good/../files/token.txt"));
    let expected = ColumnarSettings {
        partition_fetch_bytes: 2_000_000,
        linger: Duration::from_micros(2500),
        compression: Compression::Zstd,
        rack: Some("rack-7".to_owned()),
        socket_timeout: Duration::from_secs(20),
        ..ColumnarSettings::default()
    };
    assert_eq!(fresh.client, KafkaClient::Columnar(expected));
    let session = fresh.properties.get("session.timeout.ms").map(String::as_str);
    assert_eq!(session, Some("6000"), "the group's properties are passed on");
    let fixed = loaded.spec.connections["fixed"].kafka().expect("a connection to Kafka");
    let Some(SaslSpec::Token(TokenSource::Value(token))) = &fixed.sasl else { panic!("{:?}", fixed.sasl) };
    assert_eq!((&fixed.client, token.0.as_str()), (&KafkaClient::Librdkafka, "hunter2"));
    assert_eq!(fixed.properties["queued.min.messages"], "1000");
}

#[test]
fn what_is_said_of_nats() {
    let loaded = load(Path::new("tests/config/good/nats.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
    let ConnectionSpec::Nats(edge) = &loaded.spec.connections["edge"] else { panic!("no connection to NATS") };
    assert_eq!(edge.servers, ["tls://one:4222", "tls://two:4222", "nats://three:4222"]);
    assert!(edge.tls.is_some(), "by `tls://`");
    let NatsAuth::Password { user, password } = &edge.auth else { panic!("{:?}", edge.auth) };
    assert_eq!((user.as_str(), password.0.as_str()), ("fluxmill", "hunter3"));
    let SourceSpec::Nats(inward) = &loaded.spec.pipelines[0].source else { panic!("no input from NATS") };
    assert_eq!((inward.durable.as_str(), inward.ack_wait), ("edge-orders-inward", Duration::from_secs(30)));
    assert_eq!((inward.start, inward.key, &inward.subject_header), (StartOffset::Earliest, NatsKey::Header, &None));
    assert!(inward.subjects.is_empty());
    let names: Vec<_> = loaded.spec.streams.iter().map(|stream| stream.name.as_str()).collect();
    assert_eq!(names, ["ORDERS", "WORK", "BATCHED", "edge-orders-inward-dead"], "with that of a default dead letter");
    let orders = &loaded.spec.streams[0];
    assert_eq!((orders.replicas, orders.duplicate_window), (3, Duration::from_secs(600)));
    assert_eq!((orders.storage, orders.retention, orders.discard), (Storage::File, Retention::Limits, Discard::Old));
}

#[test]
fn later_mistakes_point_at_the_file() {
    let loaded = load(Path::new("tests/config/good/smallest.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
    let place = |errors: &ConfigErrors| errors.mistakes().first().and_then(|mistake| errors.position(mistake));
    let mut errors = loaded.error_at_topic("main", "notifications", "not there".to_owned(), None);
    assert_eq!(place(&errors), Some((11, 27)));
    errors.merge(loaded.error_at_function("payment", "imports foreign things".to_owned(), Some("ask".to_owned())));
    assert_eq!(place(&errors), Some((6, 23)), "in the order of the file");
    assert_eq!(errors.mistakes().len(), 2);
    let dead = loaded.error_at_topic("main", "good.payment.dead", "denied".to_owned(), None);
    assert_eq!(place(&dead), Some((4, 3)), "a default dead letter stands at its pipeline");
    assert_eq!(place(&loaded.error_at_connection("main", "away".to_owned(), None)), Some((2, 3)));
    let nowhere = loaded.error_at_topic("main", "unheard-of", "?".to_owned(), None);
    assert!(nowhere.render(false, 80).contains("smallest.yaml: ?"), "{}", nowhere.render(false, 80));
}

#[test]
fn files_that_are_no_files() {
    let folder = load(Path::new("tests/config")).expect_err("a folder");
    assert_eq!(folder.mistakes()[0].kind, Kind::Unreadable);
    assert!(folder.to_string().contains("it is a folder"), "{folder}");
    let missing = load(Path::new("tests/config/nothing-here.yaml")).expect_err("no file");
    assert!(missing.to_string().contains("there is no such file"), "{missing}");
    let scratch = tempfile::tempdir().expect("a folder");
    let large = scratch.path().join("large.yaml");
    fs::write(&large, vec![b'#'; (1 << 20) + 1]).expect("write");
    assert_eq!(load(&large).expect_err("too large").mistakes()[0].kind, Kind::TooLarge);
}

#[test]
fn a_folder_that_cannot_name_a_chain() {
    let scratch = tempfile::tempdir().expect("a folder");
    let folder = scratch.path().join("my chain");
    fs::create_dir(&folder).expect("create");
    let file = folder.join("chain.yaml");
    fs::copy("tests/config/good/copy.yaml", &file).expect("copy");
    let errors = load(&file).expect_err("no name");
    assert_eq!(errors.mistakes()[0].kind, Kind::BadName);
    assert!(errors.to_string().contains("`my chain` cannot be one"), "{errors}");
}

#[test]
fn more_outputs_than_a_function_can_name() {
    let scratch = tempfile::tempdir().expect("a folder");
    let write = |count: usize| {
        let outputs: String = (0..count).map(|n| format!("      o{n}: {{ kafka: {{ topic: t{n} }} }}\n")).collect();
        let file = scratch.path().join(format!("{count}.yaml"));
        let head = "name: many\nconnections: { main: { kafka: { brokers: [\"b:1\"] } } }\npipelines:\n  p:\n    \
                    from: { kafka: { topics: [in] } }\n    outputs:\n";
        fs::write(&file, format!("{head}{outputs}")).expect("write");
        load(&file)
    };
    assert_eq!(write(255).unwrap_or_else(|errors| panic!("{errors}")).spec.pipelines[0].outputs.len(), 255);
    let errors = write(256).expect_err("too many");
    assert!(errors.to_string().contains("at most 255 outputs, but here are 256"), "{errors}");
}

#[test]
fn aliases_cannot_explode() {
    let scratch = tempfile::tempdir().expect("a folder");
    let file = scratch.path().join("bomb.yaml");
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    fs::write(&file, text).expect("write");
    let errors = load(&file).expect_err("too much");
    assert_eq!(errors.mistakes()[0].kind, Kind::Expansion);
}

#[test]
fn the_schema_knows_what_the_reader_knows() {
    let schema = config::json_schema();
    let definitions = schema["$defs"].as_object().expect("definitions");
    for name in [
        "Connection",
        "Kafka",
        "Nats",
        "Stream",
        "NatsInput",
        "Pipeline",
        "Function",
        "Limits",
        "DeadLetter",
        "SecretFile",
    ] {
        assert!(definitions.contains_key(name), "{name} is missing");
    }
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["required"], serde_json::json!(["connections", "pipelines"]));
    assert_eq!(definitions["Batch"]["properties"]["max_events"]["default"], 1000);
    assert_eq!(definitions["Kafka"]["properties"]["tls"]["$ref"], "#/$defs/Tls");
    let described = definitions.values().flat_map(|object| object["properties"].as_object().expect("keys"));
    for (key, property) in described {
        assert!(property["description"].as_str().is_some_and(|text| !text.is_empty()), "{key} has no description");
    }
}

#[test]
fn the_reference_is_up_to_date() {
    golden(Path::new("docs/configuration.md"), &config::markdown())
        .unwrap_or_else(|_| panic!("run `fluxmill schema --markdown > docs/configuration.md`"));
}

/// Breaks a good file in a few places.
fn broken(mut text: String, breaks: &[(usize, usize, &'static str)]) -> String {
    for (at, length, instead) in breaks {
        let boundary = |mut at: usize| {
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let start = boundary(at % (text.len() + 1));
        let end = boundary((start + length).min(text.len())).max(start);
        text.replace_range(start..end, instead);
    }
    text
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Whatever a file holds, it loads or its mistakes can be shown, without its secrets.
    #[test]
    fn any_file_loads_or_has_mistakes_that_can_be_shown(
        breaks in proptest::collection::vec(
            (0usize..4000, 0usize..12, proptest::sample::select(vec![
                "", " ", "\n", "\t", ":", "[", "]", "{", "}", "\"", "'", "|", "*kept", "&a", "!x", "${", "}", "-", "é", "\u{0}", "#",
            ])),
            0..4,
        ),
    ) {
        let good = Path::new("tests/config/good/everything.yaml");
        let text = fs::read_to_string(good).expect("a good file").replace("hunter2", "harmless");
        let scratch = tempfile::tempdir().expect("a folder");
        let file = scratch.path().join("chain.yaml");
        fs::write(&file, broken(text, &breaks)).expect("write");
        if let Err(errors) = load(&file) {
            proptest::prop_assert!(!errors.mistakes().is_empty());
            for mistake in errors.mistakes() {
                proptest::prop_assert!(mistake.help.is_some(), "{} has no help", mistake.message);
            }
            let shown = errors.render(false, 80);
            proptest::prop_assert!(!shown.contains("hunter2"), "{}", shown);
        }
    }
}
