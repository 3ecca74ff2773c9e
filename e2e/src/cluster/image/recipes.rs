//! What the images hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::archive::{Content, Image, Recipe};
use crate::machine::cache;
use crate::process::output_of;
use crate::{packages, say, suite};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The image of a release needs no libraries that way, and the one target that every toolchain has will do.
const STATIC: &str = "target.x86_64-unknown-linux-gnu.rustflags=[\"-C\",\"target-feature=+crt-static\"]";

/// Those of our programs that exist go into the image of the product.
const PRODUCT: &[&str] = &["fairlead-operator", "fairlead-node-agent"];

const TRAFFIC: &str = "traffic";

/// Brings a shell and modprobe, in one static file.
const BUSYBOX: &[(&str, &str)] = &[("busybox", "busybox-static")];

/// busybox' programs that are in an image by their names: what the agent calls, and what one looks around with.
const APPLETS: &[&str] =
    &["cat", "grep", "ip", "ls", "lsmod", "modprobe", "ping", "ps", "sh", "sleep", "wget"];

/// The images of a cluster.
#[derive(Debug, Clone)]
pub struct Images {
    /// The operator and the node agent.
    pub fairlead: Image,
    /// What holds a pod's namespaces.
    pub pause: Image,
    /// The rig's servers and clients.
    pub traffic: Image,
}

impl Images {
    /// Builds the programs, and makes the images of them.
    pub fn make() -> Result<Self> {
        let busybox = busybox()?;
        let programs = quick()?;
        let traffic = programs.get(TRAFFIC).context("cargo built no program called traffic")?;
        let folder = cache::folder()?.join("images");
        let [mut product, mut pause, mut of_traffic] = [
            product(name("fairlead"), &programs, &busybox),
            Recipe {
                name: name("pause"),
                files: BTreeMap::from([("traffic".into(), Content::Program(traffic.clone()))]),
                entrypoint: ["/traffic", "pause"].map(ToOwned::to_owned).into(),
            },
            with_shell(
                Recipe {
                    name: name(TRAFFIC),
                    files: BTreeMap::from([("bin/traffic".into(), Content::Program(traffic.clone()))]),
                    entrypoint: vec!["/bin/traffic".to_owned()],
                },
                &busybox,
            ),
        ];
        for recipe in [&mut product, &mut pause, &mut of_traffic] {
            for program in programs.values() {
                recipe.files.extend(libraries(program)?);
            }
        }
        Ok(Self {
            fairlead: product.make(&folder)?,
            pause: pause.make(&folder)?,
            traffic: of_traffic.make(&folder)?,
        })
    }

    /// The image of operator and node agent as users run it; its archive is what they push.
    pub fn release() -> Result<Image> {
        let recipe = product("fairlead.dev/fairlead".to_owned(), &released()?, &busybox()?);
        recipe.make(&cache::folder()?.join("images"))
    }

    /// All of them.
    pub fn all(&self) -> [&Image; 3] {
        [&self.fairlead, &self.pause, &self.traffic]
    }
}

fn busybox() -> Result<PathBuf> {
    packages::ensure(&[BUSYBOX])?;
    let busybox = packages::find("busybox").context("failed to find busybox")?;
    let linked = output_of(Command::new("ldd").arg(&busybox));
    ensure!(linked.is_err(), "{} is not static: install busybox-static", busybox.display());
    Ok(busybox)
}

fn name(last: &str) -> String {
    format!("fairlead.dev/rig/{last}")
}

fn product(name: String, programs: &BTreeMap<String, PathBuf>, busybox: &Path) -> Recipe {
    let ours = programs.iter().filter(|(name, _)| PRODUCT.contains(&name.as_str()));
    let files =
        ours.map(|(name, file)| (Path::new("usr/local/bin").join(name), Content::Program(file.clone())));
    with_shell(Recipe { name, files: files.collect(), entrypoint: Vec::new() }, busybox)
}

fn with_shell(mut recipe: Recipe, busybox: &Path) -> Recipe {
    recipe.files.insert("bin/busybox".into(), Content::Program(busybox.to_owned()));
    for applet in APPLETS {
        recipe.files.insert(Path::new("bin").join(applet), Content::Link("busybox".into()));
    }
    // modprobe reads the administrator's options there, and complains when it cannot
    recipe.files.insert("etc/modprobe.d".into(), Content::Folder);
    recipe
}

/// The programs as the tests have them, which are built already, without what debuggers want.
fn quick() -> Result<BTreeMap<String, PathBuf>> {
    let features = "--features=fairlead-e2e/machine,fairlead-e2e/cluster";
    let built = executables(&suite::cargo(&["build", "--quiet", "--workspace", "--bins", features])?)?;
    let wanted = built.into_iter().filter(|(name, _)| PRODUCT.contains(&name.as_str()) || name == TRAFFIC);
    wanted.map(|(name, file)| Ok((name, stripped(&file)?))).collect()
}

fn stripped(program: &Path) -> Result<PathBuf> {
    let to = program.with_extension("stripped");
    output_of(Command::new("strip").arg("-o").arg(&to).arg(program))?;
    Ok(to)
}

/// The static programs of a release.
fn released() -> Result<BTreeMap<String, PathBuf>> {
    say("building operator and node agent for release");
    let target = workspace()?.join("target/image").display().to_string();
    let mut args = vec!["build", "--quiet", "--release", "--target", TARGET, "--target-dir", &target];
    args.extend(["--config", STATIC, "--bins"]);
    args.extend(PRODUCT.iter().flat_map(|name| ["-p", name]));
    executables(&suite::cargo(&args)?)
}

/// The libraries of a program that is not static, at the paths where its loader looks.
fn libraries(program: &Path) -> Result<BTreeMap<PathBuf, Content>> {
    let listing = output_of(Command::new("ldd").arg(program))?;
    let paths = listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let file = |path: &str| Some((PathBuf::from(path.strip_prefix('/')?), Content::Program(path.into())));
    Ok(paths.filter_map(file).collect())
}

/// The programs that cargo's messages speak of, by name.
fn executables(messages: &str) -> Result<BTreeMap<String, PathBuf>> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
    }
    let lines = messages.lines().filter(|line| line.starts_with('{'));
    let messages: Vec<Message> = lines
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("failed to read cargo's messages")?;
    let files = messages.into_iter().filter_map(|message| message.executable);
    Ok(files.filter_map(|file| Some((file.file_name()?.to_str()?.to_owned(), file))).collect())
}

#[derive(Deserialize)]
struct Metadata {
    workspace_root: PathBuf,
}

fn workspace() -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["metadata", "--no-deps", "--format-version=1"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let metadata: Metadata =
        serde_json::from_str(&output_of(&mut cargo)?).context("failed to read cargo's metadata")?;
    Ok(metadata.workspace_root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_is_what_exists_of_it_with_a_shell_and_modprobe() {
        let programs = ["fairlead-node-agent", "crdgen"].map(|name| (name.to_owned(), PathBuf::from(name)));
        let recipe = product("x".to_owned(), &programs.into(), Path::new("/bin/busybox"));
        let ours: Vec<_> = recipe.files.keys().filter(|path| path.starts_with("usr")).collect();
        assert_eq!(ours, [Path::new("usr/local/bin/fairlead-node-agent")]);
        assert_eq!(recipe.files[Path::new("bin/modprobe")], Content::Link("busybox".into()));
    }

    #[test]
    fn programs_are_taken_from_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":\"/t/release/traffic\"}\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":null}\n{\"reason\":\"build-finished\"}\n";
        let programs = executables(messages).unwrap();
        assert_eq!(programs, BTreeMap::from([("traffic".to_owned(), "/t/release/traffic".into())]));
    }
}
