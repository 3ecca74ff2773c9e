//! The generated CRD in the tree is the one that the types give.

use std::process::Command;

#[test]
fn the_crd_is_up_to_date() {
    let output = Command::new(env!("CARGO_BIN_EXE_crdgen")).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
