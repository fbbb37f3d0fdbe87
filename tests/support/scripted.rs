//! Workers that are shell scripts and speak the protocol as badly as a test wants.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use engine::contract::Pool;
use engine::worker::{Hello, PROTOCOL, Reply, build_id};

use super::Kitchen;

/// The first line that a worker of this build says.
pub fn hello() -> Hello {
    engine::worker::name_build(env!("LEVAIN_BUILD"));
    Hello {
        protocol: PROTOCOL,
        build: build_id(),
        kinds: kinds::contracts().versions(Pool::Torch),
        numerics: [("libtorch".to_owned(), "none".to_owned())].into(),
        devices: vec!["cpu".to_owned()],
        dtypes: vec!["f32".to_owned()],
    }
}

/// A greeting as it is sent.
pub fn line(hello: Hello) -> String {
    serde_json::to_string(&Reply::Hello(hello)).unwrap()
}

/// The line of [`hello`].
pub fn greeting() -> String {
    line(hello())
}

/// A worker that says `hello` and goes on with `rest`, a piece of shell.
pub fn worker(kitchen: &Kitchen, hello: &str, rest: &str) -> PathBuf {
    let path = kitchen.write(
        "worker.sh",
        &format!("#!/bin/sh\ncat <<'HELLO'\n{hello}\nHELLO\n{rest}\n"),
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Reads the job and makes an empty report in its folder, as the protocol says.
pub const BAKES: &str = r#"
while read -r job; do
  out=$(printf '%s' "$job" | sed 's/.*"out":"\([^"]*\)".*/\1/')
  echo '{"loss": 1}' > "$out/metrics.json"
  echo '{"event":{"event":"progress","done":1,"total":2,"unit":"rows"}}'
  echo "{\"done\":{\"metrics\":{\"type\":\"metrics\",\"files\":[[\"metrics.json\",\"$out/metrics.json\"]],\"refs\":{},\"summary\":{}}}}"
done"#;
