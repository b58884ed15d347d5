//! A bill of materials: what `tidemark` is made of, as CycloneDX 1.5.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::process;
use crate::workspace::Workspace;

/// The package that is delivered.
const ROOT: &str = "cli";

/// Writes `target/sbom/tidemark.cdx.json` from what cargo knows.
pub fn run(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["metadata", "--format-version=1", "--locked"]);
    cargo.args(["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let metadata: Value = serde_json::from_str(&process::capture(&mut cargo)?)
        .context("cargo metadata is no JSON")?;
    let bill = bill(&metadata)?;
    let dir = workspace.target().join("sbom");
    fs::create_dir_all(&dir)?;
    let path = dir.join("tidemark.cdx.json");
    fs::write(&path, serde_json::to_string_pretty(&bill)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    let count = bill["components"].as_array().map_or(0, Vec::len);
    println!("{count} components in {}", path.display());
    Ok(path)
}

/// The bill of what the delivered package is built of and linked with, tests left out.
fn bill(metadata: &Value) -> Result<Value> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<_, _> = list(&metadata["packages"])
        .into_iter()
        .map(|package| (text(&package["id"]), package))
        .collect();
    let mut needs = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let used = |dep: &Value| {
            list(&dep["dep_kinds"])
                .iter()
                .any(|kind| kind["kind"] != "dev")
        };
        let deps = list(&node["deps"]).into_iter().filter(used);
        let ids: BTreeSet<_> = deps.map(|dep| text(&dep["pkg"])).collect();
        needs.insert(text(&node["id"]), ids);
    }
    let root = packages.iter().find(|(_, package)| package["name"] == ROOT);
    let (root, delivered) = root.with_context(|| format!("cargo knows no package `{ROOT}`"))?;
    let (mut reached, mut next) = (BTreeSet::new(), Vec::from([root.clone()]));
    while let Some(id) = next.pop() {
        if reached.insert(id.clone()) {
            next.extend(needs.get(&id).into_iter().flatten().cloned());
        }
    }
    ensure!(reached.len() > 1, "`{ROOT}` needs nothing, which cannot be");
    // Old manifests have slashes where SPDX has a word.
    let licence = |package: &Value| {
        let expression = text(&package["license"]);
        let parts: Vec<_> = expression.split('/').map(str::trim).collect();
        parts.join(" OR ")
    };
    let component = |id: &String, kind: &str| -> Result<Value> {
        let package = packages
            .get(id)
            .with_context(|| format!("no package {id}"))?;
        let (name, version) = (text(&package["name"]), text(&package["version"]));
        let mut component = json!({
            "type": kind, "bom-ref": id, "name": name, "version": version,
            "licenses": [{"expression": licence(package)}],
        });
        if package["source"].is_string() {
            component["purl"] = json!(format!("pkg:cargo/{name}@{version}"));
        }
        Ok(component)
    };
    let mut components = Vec::new();
    for id in reached.iter().filter(|id| *id != root) {
        components.push(component(id, "library")?);
    }
    let dependencies: Vec<_> = reached
        .iter()
        .map(|id| json!({"ref": id, "dependsOn": needs.get(id)}))
        .collect();
    let mut whole = component(root, "application")?;
    whole["name"] = json!("tidemark");
    whole["version"] = delivered["version"].clone();
    Ok(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": whole},
        "components": components, "dependencies": dependencies,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_listed_and_what_only_tests_need_is_not() {
        let package = |name: &str, source: Option<&str>| {
            json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0",
                "source": source})
        };
        let dep =
            |name: &str, kind: Option<&str>| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [package("cli", None), package("a", Some("r")), package("b", Some("r")),
                package("c", Some("r"))],
            "resolve": {"nodes": [
                {"id": "cli", "deps": [dep("a", None), dep("c", Some("dev"))]},
                {"id": "a", "deps": [dep("b", Some("build"))]},
                {"id": "b", "deps": []}, {"id": "c", "deps": []}]}});
        let bill = bill(&metadata).expect("a bill");
        let names: Vec<_> = bill["components"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|component| component["purl"].as_str().expect("from a registry"))
            .collect();
        assert_eq!(names, ["pkg:cargo/a@1.0.0", "pkg:cargo/b@1.0.0"]);
        assert_eq!(
            bill["components"][0]["licenses"][0]["expression"],
            "MIT OR Apache-2.0"
        );
        assert_eq!(bill["metadata"]["component"]["name"], "tidemark");
    }

    #[test]
    fn without_the_package_there_is_no_bill() {
        assert!(bill(&json!({"packages": [], "resolve": {"nodes": []}})).is_err());
    }
}
