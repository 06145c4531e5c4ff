//! Who a client of NATS is and what it may, through the binary, against a real nats-server: passwords, tokens, nkeys,
//! certificates, and the credentials of a server in operator mode; and what is said of those that are refused.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use support::nats::operator::Operator;
use support::nats::setup::{Chain, LIMIT, Setup, exactly_once, message};
use support::nats::{Jet, Nats, certificates};
use support::suite::{Case, Suite};

mod support;

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.nats("what_is_not_permitted_ends_the_run", what_is_not_permitted_ends_the_run);
    suite.nats("tokens_and_nkeys_sign_in", tokens_and_nkeys_sign_in);
    suite.nats_and_certificates("both_sides_show_certificates", both_sides_show_certificates);
    suite.nats("credentials_sign_in", credentials_sign_in);
    suite.nats("credentials_that_are_wrong_or_expired_are_refused", credentials_that_are_wrong_or_expired_are_refused);
    suite.run()
}

fn what_is_not_permitted_ends_the_run(case: &Case) -> anyhow::Result<()> {
    const USERS: &str = "authorization { users: [ { user: admin, password: secret1 }, { user: app, password: secret2, \
                         permissions: { publish: { deny: \"out.>\" } } } ] }";
    let nats = Nats::start(USERS)?;
    let options = async_nats::ConnectOptions::with_user_and_password("admin".into(), "secret1".into());
    let jet = Jet::new(&nats.url(), options)?;
    jet.create("IN", &["in.>"])?;
    jet.publish((0..10).map(message))?;
    let chain = Chain { connection: ", user: app, password: secret2", ..Chain::default() };
    let setup = Setup { file: case.write("chain.yaml", &chain.yaml())?, jet, nats };
    let ended = setup.run(case, &["--until-caught-up"], &["ERROR", "WARN"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
    ensure!(ended.stderr.to_lowercase().contains("permissions violation for publish"), "{}", ended.stderr);
    ensure!(!ended.stderr.contains("secret2"), "a secret is shown");
    // A wrong password is told at the start.
    let chain = Chain { connection: ", user: app, password: wrong", ..Chain::default() };
    case.write("chain.yaml", &chain.yaml())?;
    let ended = setup.run(case, &[], &["ERROR", "WARN"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1) && ended.stderr.contains("authorization violation"), "{}", ended.stderr);
    Ok(())
}

/// A user's seed and its public key, of the documents of NATS.
const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
const KEY: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

fn tokens_and_nkeys_sign_in(case: &Case) -> anyhow::Result<()> {
    case.write("user.nk", &format!("{SEED}\n"))?;
    let nkey = format!("authorization {{ users: [ {{ nkey: {KEY} }} ] }}");
    for (settings, connection, options) in [
        (
            "authorization { token: secret1 }",
            ", token: secret1",
            async_nats::ConnectOptions::with_token("secret1".into()),
        ),
        (&nkey, ", nkey: { file: user.nk }", async_nats::ConnectOptions::with_nkey(SEED.into())),
    ] {
        let nats = Nats::start(settings)?;
        let jet = Jet::new(&nats.url(), options)?;
        let file = case.write("chain.yaml", &Chain { connection, ..Chain::default() }.yaml())?;
        jet.create("IN", &["in.>"])?;
        let setup = Setup { file, jet, nats };
        setup.feed(0..100)?;
        setup.catch_up(case, &[])?;
        exactly_once(&setup.report(100)?)?;
        // Without it nothing is reached.
        case.write("chain.yaml", &Chain::default().yaml())?;
        let ended = setup.run(case, &[], &["ERROR", "WARN"])?.finish(LIMIT)?;
        ensure!(ended.code == Some(1) && ended.stderr.contains("authorization violation"), "{}", ended.stderr);
    }
    Ok(())
}

fn both_sides_show_certificates(case: &Case) -> anyhow::Result<()> {
    certificates(case.dir())?;
    let path = |name: &str| case.dir().join(name);
    let settings = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    );
    let nats = Nats::start(&settings)?;
    let options = async_nats::ConnectOptions::new().require_tls(true).add_root_certificates(path("ca.pem"));
    let jet = Jet::new(&nats.url(), options.add_client_certificate(path("client.pem"), path("client.key")))?;
    jet.create("IN", &["in.>"])?;
    let connection = ", tls: { ca: ca.pem, certificate: client.pem, key: client.key }";
    let file = case.write("chain.yaml", &Chain { connection, ..Chain::default() }.yaml())?;
    let setup = Setup { file, jet, nats };
    setup.feed(0..100)?;
    setup.catch_up(case, &[])?;
    exactly_once(&setup.report(100)?)?;
    // Whoever signed the server's certificate must be trusted.
    case.write("chain.yaml", &Chain { connection: ", tls: {}", ..Chain::default() }.yaml())?;
    let ended = setup.run(case, &[], &["ERROR", "WARN"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1) && ended.stderr.to_lowercase().contains("certificate"), "{}", ended.stderr);
    Ok(())
}

/// A server in operator mode, with an account that may use JetStream, and a pipeline's file that names `app.creds`.
fn operated(case: &Case) -> anyhow::Result<(Operator, Nats)> {
    let operator = Operator::new()?;
    let nats = Nats::start(&operator.settings()?)?;
    case.write("chain.yaml", &Chain { connection: CREDENTIALS, ..Chain::default() }.yaml())?;
    Ok((operator, nats))
}

const CREDENTIALS: &str = ", credentials: { file: app.creds }";

fn credentials_sign_in(case: &Case) -> anyhow::Result<()> {
    let (operator, nats) = operated(case)?;
    let app = operator.user(None)?;
    case.write("app.creds", &app)?;
    let jet = Jet::new(&nats.url(), async_nats::ConnectOptions::with_credentials(&app)?)?;
    jet.create("IN", &["in.>"])?;
    let mut setup = Setup { file: case.dir().join("chain.yaml"), jet, nats };
    setup.feed(0..100)?;
    setup.catch_up(case, &[])?;
    // What will expire has not yet, a file may end where the seed does, and both serve after the server was away.
    let user = operator.user(Some(3_600))?;
    let end = user.rfind("------\n").context("the end of the seed")? + "------".len();
    case.write("app.creds", &user[..end])?;
    let run = setup.run(case, &[], &["is not reachable; waiting for it"])?;
    setup.feed(100..150)?;
    setup.jet.wait_for(LIMIT, "OUT", 150)?;
    setup.nats.kill()?;
    setup.nats.restart()?;
    setup.jet = Jet::new(&setup.nats.url(), async_nats::ConnectOptions::with_credentials(&app)?)?;
    setup.feed(150..200)?;
    setup.jet.wait_for(LIMIT, "OUT", 200)?;
    run.stop(LIMIT)?;
    exactly_once(&setup.report(200)?)?;
    // Without them nothing is reached.
    case.write("chain.yaml", &Chain::default().yaml())?;
    let ended = setup.run(case, &[], &["ERROR", "WARN"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1) && ended.stderr.contains("authorization violation"), "{}", ended.stderr);
    Ok(())
}

fn credentials_that_are_wrong_or_expired_are_refused(case: &Case) -> anyhow::Result<()> {
    let (operator, nats) = operated(case)?;
    let app = operator.user(None)?;
    let jet = Jet::new(&nats.url(), async_nats::ConnectOptions::with_credentials(&app)?)?;
    jet.create("IN", &["in.>"])?;
    let setup = Setup { file: case.dir().join("chain.yaml"), jet, nats };
    let stranger = Operator::new()?;
    let (other, unreadable) = (operator.user(None)?, "they hold no JWT and seed as `nsc` writes them");
    let (jwt, _) = app.split_once("-----BEGIN USER NKEY SEED-----").unwrap_or_default();
    let (_, seed) = other.split_once("-----BEGIN USER NKEY SEED-----").unwrap_or_default();
    let mixed = format!("{jwt}-----BEGIN USER NKEY SEED-----{seed}");
    for (what, text, told) in [
        ("of an operator that the server does not know", stranger.user(None)?, "authorization violation"),
        ("a JWT with the seed of another", mixed, "authorization violation"),
        ("expired", operator.user(Some(-60))?, "authorization violation: the credentials expired at 20"),
        ("of an account that may not use JetStream", operator.outsider()?, "JetStream not enabled for account"),
        ("no credentials", "user: fluxmill\n".to_owned(), unreadable),
        ("a JWT without a seed", jwt.to_owned(), unreadable),
    ] {
        case.write("app.creds", &text)?;
        let ended = setup.run(case, &[], &["ERROR", "WARN"])?.finish(LIMIT)?;
        ensure!(ended.code == Some(1), "{what}: exit code {:?}: {}", ended.code, ended.stderr);
        ensure!(ended.stderr.contains(told), "{what}: no `{told}` in {}", ended.stderr);
        ensure!(
            !text.lines().any(|line| line.len() > 30 && !line.contains("---") && ended.stderr.contains(line)),
            "{what}: a secret is shown"
        );
    }
    // The right ones, to show that it was them.
    case.write("app.creds", &app)?;
    setup.feed(0..100)?;
    setup.catch_up(case, &[])?;
    exactly_once(&setup.report(100)?)
}
