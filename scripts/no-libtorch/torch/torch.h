// Found only where libtorch is missing: .cargo/config.toml puts this folder last in the C++ search path, so that
// torch-sys's build stops here with this sentence, and not with thousands of lines about missing names.
#include "libtorch is not set up in this checkout: run `make setup` (once per machine), or build levain alone with `cargo build --no-default-features`"
