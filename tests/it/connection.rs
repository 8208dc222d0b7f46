//! Connecting: secrets, TLS, waiting, and what only the operator can change.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nkeys::KeyPair;
use tocsin::bus::BusError;
use tocsin::bus::connection::{Connection, Connector, Settings, State, Violation};

use crate::support::eventually;
use crate::support::nats::Nats;

fn connector(settings: Settings) -> Connector {
    Connector::new(settings, tokio::runtime::Handle::current())
}

async fn connected(settings: Settings) -> Connection {
    let connecting = connector(settings);
    let connected = connecting.connect_within(Duration::from_secs(30), "test", 1000);
    connected.await.unwrap_or_else(|error| panic!("{error}"))
}

/// That it is waited for, and why.
async fn waited_for(settings: Settings) -> String {
    let connecting = connector(settings);
    let given_up = connecting.connect_within(Duration::from_millis(700), "test", 1000);
    match given_up.await {
        Err(BusError::Unavailable(why)) => why,
        other => panic!("not waited for: {other:?}"),
    }
}

/// That only the operator can change it, and why.
async fn refused(settings: Settings) -> String {
    let connecting = connector(settings);
    let refused = tokio::time::timeout(Duration::from_secs(10), connecting.connect("test", 1000));
    match refused.await.expect("at once") {
        Err(BusError::Configuration(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn user_and_password_are_used_wherever_they_are_written() {
    let config = r#"authorization: { user: "ann", password: "p@ss" }"#;
    let nats = Nats::start_with(false, config).await;
    let settings = Settings {
        user: Some("ann".to_owned()),
        password: Some("p@ss".to_owned()),
        ..nats.login()
    };
    connected(settings.clone()).await;
    let in_address = Settings {
        urls: vec![format!("nats://ann:p%40ss@127.0.0.1:{}", nats.port())],
        ..nats.login()
    };
    connected(in_address).await;
    let wrong = Settings {
        password: Some("wrong".to_owned()),
        ..settings.clone()
    };
    let why = waited_for(wrong).await.to_lowercase();
    assert!(why.contains("authorization violation"), "{why}");
    let half = Settings {
        password: None,
        ..settings
    };
    assert!(refused(half).await.contains("belong together"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_used() {
    let nats = Nats::start_with(false, r#"authorization: { token: "secret" }"#).await;
    let settings = Settings {
        token: Some("secret".to_owned()),
        ..nats.login()
    };
    connected(settings).await;
    waited_for(nats.login()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_secrets_are_waited_for_until_the_server_takes_them() {
    let mut nats = Nats::start_with(false, r#"authorization: { token: "other" }"#).await;
    let settings = Settings {
        token: Some("secret".to_owned()),
        ..nats.login()
    };
    let connector = connector(settings);
    let mut waiting = connector.waiting();
    let connecting = tokio::spawn({
        let connector = connector.clone();
        async move { connector.connect("test", 1000).await }
    });
    waiting.wait_for(Option::is_some).await.expect("a cause");
    nats.reload(r#"authorization: { token: "secret" }"#.to_owned())
        .expect("reloaded");
    let connection = connecting.await.expect("an answer").expect("connected");
    assert_eq!(*connection.state().borrow(), State::Connected { epoch: 1 });
    assert_eq!(*waiting.borrow(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connect_has_a_number_of_its_own() {
    let mut nats = Nats::start().await;
    let connection = nats.connect().await;
    assert!(connection.has_jetstream());
    assert_eq!(connection.max_payload(), 1 << 20);
    assert_eq!(connection.connected().await, 1);
    let mut state = connection.state();
    nats.kill().await;
    let is_lost = |state: &State| matches!(state, State::Disconnected { .. });
    state.wait_for(is_lost).await.expect("seen");
    nats.restart().await.expect("a start");
    assert_eq!(connection.connected().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_connection_is_closed() {
    let nats = Nats::start_with(false, "").await;
    let watcher = nats.connect().await;
    let inbox = watcher.client().new_inbox();
    let connection = nats.connect().await;
    let subscription = connection
        .client()
        .subscribe(inbox.clone())
        .await
        .expect("subscribed");
    drop((connection, subscription));
    eventually("nobody answers", async || {
        let asked = watcher.client().request(inbox.clone(), "".into()).await;
        asked.is_err_and(|error| error.kind() == async_nats::client::RequestErrorKind::NoResponders)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_that_we_may_not_use_is_told() {
    let config = r#"
        authorization: { users: [
            { user: "a", password: "a", permissions: { publish: "ok", subscribe: "ok" } }
        ] }
        no_auth_user: a
    "#;
    let nats = Nats::start_with(false, config).await;
    let connection = nats.connect().await;
    let mut violations = connection.violations();
    connection
        .client()
        .publish("not.ok", "".into())
        .await
        .expect("sent");
    let seen = tokio::time::timeout(Duration::from_secs(10), violations.recv()).await;
    let expected = Violation::Publish("not.ok".to_owned());
    assert_eq!(seen.expect("in time").expect("seen"), expected);
    let _subscription = connection
        .client()
        .subscribe("nor.this")
        .await
        .expect("sent");
    let seen = tokio::time::timeout(Duration::from_secs(10), violations.recv()).await;
    let expected = Violation::Subscribe("nor.this".to_owned());
    assert_eq!(seen.expect("in time").expect("seen"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_waited_for_and_a_bad_address_is_not() {
    let mut nats = Nats::start_with(false, "").await;
    nats.kill().await;
    let why = waited_for(nats.login()).await;
    assert!(
        why.contains("127.0.0.1") && why.contains("refused"),
        "{why}"
    );
    let mut settings = nats.login();
    settings.urls = vec!["http://127.0.0.1".to_owned()];
    assert!(refused(settings).await.contains("nats.url"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_read_is_the_operators_matter() {
    let nats = Nats::start_with(false, "").await;
    let missing = Some(PathBuf::from("/nowhere/at/all"));
    let login = nats.login();
    let why = refused(Settings {
        credentials_file: missing.clone(),
        ..login.clone()
    })
    .await;
    assert!(
        why.contains("/nowhere/at/all") && why.contains("nats.credentials_file"),
        "{why}"
    );
    let why = refused(Settings {
        tls_ca_file: missing.clone(),
        ..login.clone()
    })
    .await;
    assert!(why.contains("nats.tls_ca_file"), "{why}");
    let why = refused(Settings {
        tls_key_file: missing,
        ..login.clone()
    })
    .await;
    assert!(why.contains("belong together"), "{why}");
    let empty = tempfile::NamedTempFile::new().expect("a file");
    let empty = Some(empty.path().to_owned());
    let why = refused(Settings {
        credentials_file: empty.clone(),
        ..login.clone()
    })
    .await;
    assert!(why.contains("needs a user's token and key"), "{why}");
    let why = refused(Settings {
        tls_ca_file: empty,
        ..login
    })
    .await;
    assert!(why.contains("holds no certificate"), "{why}");
}

/// Signs a claim of one key by another: `nats-server` asks for nothing more.
fn token(issuer: &KeyPair, subject: &KeyPair, kind: &str) -> String {
    let header = base64(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let limits = match kind {
        "account" => {
            r#","limits":{"subs":-1,"data":-1,"payload":-1,"imports":-1,"exports":-1,"wildcards":true,"conn":-1,"leaf":-1}"#
        }
        "user" => r#","pub":{},"sub":{},"subs":-1,"data":-1,"payload":-1"#,
        _ => "",
    };
    let claims = format!(
        r#"{{"jti":"{kind}","iat":1700000000,"iss":"{}","name":"{kind}","sub":"{}","nats":{{"type":"{kind}","version":2{limits}}}}}"#,
        issuer.public_key(),
        subject.public_key(),
    );
    let signed = format!("{header}.{}", base64(claims.as_bytes()));
    let signature = issuer.sign(signed.as_bytes()).expect("signed");
    format!("{signed}.{}", base64(&signature))
}

/// The URL-safe alphabet, without padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for i in 0..=chunk.len() {
            let digit = (bits >> (18 - 6 * i)) & 63;
            text.push(char::from(ALPHABET[digit as usize]));
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credentials_file_is_used() {
    let (operator, account, user) = (
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_user(),
    );
    let config = format!(
        "operator: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {} }}\n",
        token(&operator, &operator, "operator"),
        account.public_key(),
        token(&operator, &account, "account"),
    );
    let nats = Nats::start_with(false, &config).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let write = |key: &KeyPair| {
        let jwt = token(&account, key, "user");
        let seed = user.seed().expect("a seed");
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        std::fs::write(file.path(), text).expect("written");
    };
    let settings = Settings {
        credentials_file: Some(file.path().to_owned()),
        ..nats.login()
    };
    // Another user's token: our key does not prove it.
    write(&KeyPair::new_user());
    let connector = connector(settings);
    let mut waiting = connector.waiting();
    let connecting = tokio::spawn(async move { connector.connect("test", 1000).await });
    waiting.wait_for(Option::is_some).await.expect("a cause");
    // Mended without a restart.
    write(&user);
    connecting.await.expect("an answer").expect("connected");
}

fn openssl(folder: &Path, args: &str) {
    let mut command = Command::new("openssl");
    let ran = command.args(args.split(' ')).current_dir(folder).output();
    let ran = ran.expect("openssl is there; type `apt-get install openssl`");
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

/// An authority, a server's certificate for the loopback address, and a client's.
fn certificates(folder: &Path) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(
        folder,
        &format!("req -x509 {key} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"),
    );
    for name in ["server", "client"] {
        openssl(
            folder,
            &format!("req {key} -subj /CN={name} -keyout {name}.key -out {name}.csr"),
        );
        let extension = "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
        std::fs::write(folder.join("extension"), extension).expect("written");
        openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extension -out {name}.pem"
            ),
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_an_authority_and_a_certificate_of_our_own() {
    let folder = tempfile::tempdir().expect("a folder");
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name);
    let config = format!(
        "tls: {{ cert_file: '{}', key_file: '{}', ca_file: '{}', verify: true }}",
        file("server.pem").display(),
        file("server.key").display(),
        file("ca.pem").display(),
    );
    let nats = Nats::start_with(false, &config).await;
    let settings = Settings {
        tls_ca_file: Some(file("ca.pem")),
        tls_cert_file: Some(file("client.pem")),
        tls_key_file: Some(file("client.key")),
        ..nats.login()
    };
    connected(settings.clone()).await;
    let nameless = Settings {
        tls_cert_file: None,
        tls_key_file: None,
        ..settings.clone()
    };
    waited_for(nameless).await;
    let distrustful = Settings {
        tls_ca_file: Some(file("client.pem")),
        ..settings
    };
    let why = waited_for(distrustful).await;
    assert!(why.contains("certificate"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_names_certificates_never_sends_a_secret_in_the_clear() {
    let folder = tempfile::tempdir().expect("a folder");
    certificates(folder.path());
    let nats = Nats::start_with(false, r#"authorization: { token: "secret" }"#).await;
    let settings = Settings {
        tls_ca_file: Some(folder.path().join("ca.pem")),
        token: Some("secret".to_owned()),
        ..nats.login()
    };
    waited_for(settings).await;
}
