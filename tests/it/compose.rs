//! `docker/compose.yaml`, read by Docker's own loader, and that it agrees with the image and the daemon.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

const DOCKERFILE: &str = include_str!("../../docker/Dockerfile");

/// What the file comes to with these profiles.
fn loaded(profiles: &[&str]) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let loader = root.join("target/tools/compose-config");
    assert!(
        loader.exists(),
        "{} is missing; type `.ci/tools compose`",
        loader.display()
    );
    let output = Command::new(loader)
        .arg(root.join("docker/compose.yaml"))
        .args(profiles)
        .env_remove("BE_CHALLENGE_IMAGE")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn names(services: &Value) -> Vec<&str> {
    let services = services.as_object().unwrap();
    services.keys().map(String::as_str).collect()
}

#[test]
fn each_profile_is_whole_and_every_daemon_locked_up_as_in_the_image() {
    let services = &loaded(&[])["services"];
    assert_eq!(names(services), ["nats", "tocsin"]);
    let services = &loaded(&["be-challenge"])["services"];
    let all = ["be-challenge", "nats", "tocsin", "tocsin-challenge"];
    assert_eq!(names(services), all);
    assert_eq!(
        services["be-challenge"]["image"],
        "docker.io/lvrach/be-challenge:latest"
    );
    for name in ["tocsin", "tocsin-challenge"] {
        let service = &services[name];
        let user = service["user"].as_str().unwrap();
        assert!(DOCKERFILE.contains(&format!("\nUSER {user}\n")), "{user}");
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"], json!(["ALL"]), "{name}");
        assert_eq!(service["security_opt"], json!(["no-new-privileges:true"]));
        assert_eq!(service["restart"], "unless-stopped");
        assert_eq!(service["volumes"][0]["target"], "/var/lib/tocsin");
        assert!(DOCKERFILE.contains("\nVOLUME /var/lib/tocsin\n"));
    }
}

#[test]
fn the_daemon_takes_the_settings_that_the_services_give_it() {
    let services = &loaded(&["be-challenge"])["services"];
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "secret").unwrap();
    for name in ["tocsin", "tocsin-challenge"] {
        let mut check = Command::new(env!("CARGO_BIN_EXE_tocsin"));
        check.args(["config", "check"]).env_clear();
        for (key, value) in services[name]["environment"].as_object().unwrap() {
            if key == "TOCSIN__NATS__PASSWORD_FILE" {
                assert_eq!(value, &services[name]["secrets"][0]["target"]);
                check.env(key, secret.path());
            } else {
                check.env(key, value.as_str().unwrap());
            }
        }
        let output = check.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
    }
}
