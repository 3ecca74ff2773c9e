//! The text of one manifest file to the objects in it.
//!
//! Knows files and positions, and what an API server would have filled in or refused; knows no
//! folder and no state. A document is read twice: first for its kind, then as that kind, because
//! only a typed reading has a line and a column for a wrong value.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    path::{Path, PathBuf},
};

use fairlead_crds::{ServiceNetwork, ServiceNetworkManifest};
use k8s_openapi::{
    Resource,
    api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR,
    },
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Location, MessageFormatter, Spanned, UserMessageFormatter};

use super::{Change, ObjectId, convert};

/// A place in a file, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Line.
    pub line: u64,
    /// Column.
    pub column: u64,
}

/// What is wrong with a file, or with the folder it is in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FileError {
    /// The file or folder.
    pub file: PathBuf,
    /// Where in the file, if it is about one place.
    pub position: Option<Position>,
    /// What is wrong and what to do, in one sentence.
    pub message: String,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(position) = self.position {
            write!(f, "{position}:")?;
        }
        write!(f, " {}", self.message)
    }
}

/// An object of a file: the change that it amounts to, and where it is written.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// Identity.
    pub id: ObjectId,
    /// Added or changed, or gone when the object is not ours to serve.
    pub change: Change,
    /// Where it begins.
    pub position: Position,
}

/// Reads all documents of a file. A file with an error has no objects: half a file is not what
/// its author meant.
pub fn parse(file: &Path, text: &str) -> Result<Vec<Parsed>, Vec<FileError>> {
    let mut objects: Vec<Parsed> = Vec::new();
    let mut places = BTreeMap::new();
    let mut errors = Vec::new();
    for (first_line, document) in documents(text) {
        let found = match read_document(document) {
            Ok(found) => found,
            Err(problem) => {
                errors.push(problem.at(file, first_line));
                continue;
            }
        };
        for mut object in found {
            object.position.line += first_line;
            match places.entry(object.id.clone()) {
                Entry::Occupied(earlier) => errors.push(duplicate(file, &object, file, *earlier.get())),
                Entry::Vacant(place) => {
                    place.insert(object.position);
                    objects.push(object);
                }
            }
        }
    }
    if errors.is_empty() { Ok(objects) } else { Err(errors) }
}

/// The error of an object that is written in two places, blamed on the one that lost.
pub(super) fn duplicate(file: &Path, object: &Parsed, other: &Path, position: Position) -> FileError {
    FileError {
        file: file.to_owned(),
        position: Some(object.position),
        message: format!(
            "{} is defined in {}:{position} already: remove one of the two",
            object.id,
            other.display()
        ),
    }
}

/// Splits a stream where YAML does: at lines that begin with `---`, which can stand nowhere else.
/// Yields each document with the number of lines before it; empty ones are left out.
fn documents(text: &str) -> impl Iterator<Item = (u64, &str)> {
    let mut starts = vec![(0, 0)];
    let mut first_marker = true;
    let mut offset = 0;
    for (line, content) in text.split_inclusive('\n').enumerate() {
        if is_marker(content) {
            // What stands before the first marker may be directives, which belong to what follows.
            if !(first_marker && text.get(..offset).is_some_and(is_empty)) {
                starts.push((line as u64, offset));
            }
            first_marker = false;
        }
        offset += content.len();
    }
    let ends: Vec<usize> = starts.iter().skip(1).map(|(_, start)| *start).chain([text.len()]).collect();
    starts
        .into_iter()
        .zip(ends)
        .filter_map(move |((line, start), end)| Some((line, text.get(start..end)?)))
        .filter(|(_, document)| !is_empty(document))
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.chars().next().is_none_or(char::is_whitespace))
}

/// True for text without content: blank lines, comments, directives, bare markers.
fn is_empty(text: &str) -> bool {
    text.trim_start_matches('\u{FEFF}').lines().all(|line| {
        let rest = if is_marker(line) { line.trim_start_matches('-') } else { line }.trim();
        rest.is_empty() || rest.starts_with(['#', '%']) || rest == "..."
    })
}

/// What is wrong with a document, its place relative to the document.
struct Problem {
    location: Option<Location>,
    message: String,
}

impl Problem {
    fn at(self, file: &Path, first_line: u64) -> FileError {
        let position = self.location.map(|l| Position { line: first_line + l.line(), column: l.column() });
        FileError { file: file.to_owned(), position, message: self.message }
    }
}

impl From<serde_saphyr::Error> for Problem {
    fn from(error: serde_saphyr::Error) -> Self {
        // The parser speaks of its own events and of Rust's types.
        let message = UserMessageFormatter
            .format_message(&error)
            .replace("mapping start", "a mapping")
            .replace("sequence start", "a list")
            .replace("invalid i32", "expected a whole number");
        Self { location: error.location(), message }
    }
}

/// The kinds that a manifest may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
    ServiceNetwork,
    List,
}

impl Kind {
    const ALL: [(Self, &str, &str); 6] = [
        (Self::Service, Service::API_VERSION, Service::KIND),
        (Self::EndpointSlice, EndpointSlice::API_VERSION, EndpointSlice::KIND),
        (Self::Node, Node::API_VERSION, Node::KIND),
        (Self::ServiceCidr, ServiceCIDR::API_VERSION, ServiceCIDR::KIND),
        (Self::ServiceNetwork, "fairlead.dev/v1alpha1", "ServiceNetwork"),
        (Self::List, "v1", "List"),
    ];

    fn of(header: &Spanned<Header>) -> Result<Self, Problem> {
        let missing = |field| Problem {
            location: Some(header.referenced),
            message: format!("the object has no {field}"),
        };
        let kind = header.value.kind.as_ref().ok_or_else(|| missing("kind"))?;
        let version = header.value.api_version.as_ref().ok_or_else(|| missing("apiVersion"))?;
        let Some((found, expected, _)) = Self::ALL.iter().find(|(_, _, name)| *name == kind.value) else {
            let names: Vec<_> = Self::ALL.iter().map(|(_, _, name)| *name).collect();
            return Err(Problem {
                location: Some(kind.referenced),
                message: format!("kind {:?} is not understood here: use {}", kind.value, names.join(", ")),
            });
        };
        if version.value != *expected {
            return Err(Problem {
                location: Some(version.referenced),
                message: format!(
                    "apiVersion {:?} of {} is not understood: use {expected}",
                    version.value, kind.value
                ),
            });
        }
        Ok(*found)
    }
}

/// What the first reading looks for.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: Option<Spanned<String>>,
    kind: Option<Spanned<String>>,
    items: Option<Vec<Spanned<Header>>>,
}

fn read_document(text: &str) -> Result<Vec<Parsed>, Problem> {
    let header: Spanned<Header> = serde_saphyr::from_str_with_options(text, options())?;
    let kind = Kind::of(&header)?;
    if kind != Kind::List {
        let object = serde_saphyr::with_deserializer_from_str_with_options(text, options(), |de| {
            kind.deserialize(de)
        })?;
        return Ok(vec![object.into_parsed(header.referenced)?]);
    }
    let items = header.value.items.unwrap_or_default();
    let kinds = items.iter().map(Kind::of).collect::<Result<Vec<_>, _>>()?;
    let objects = serde_saphyr::with_deserializer_from_str_with_options(text, options(), |de| {
        de.deserialize_map(List(&kinds))
    })?;
    objects.into_iter().zip(items).map(|(object, item)| object.into_parsed(item.referenced)).collect()
}

/// The folder is its owner's, so only the limits on aliases stay: a List of a whole cluster is
/// larger than the default budget.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! { budget: None, with_snippet: false }
}

/// An object as it is written.
enum Object {
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    Node(Box<Node>),
    ServiceCidr(Box<ServiceCIDR>),
    ServiceNetwork(Box<ServiceNetworkManifest>),
}

impl<'de> DeserializeSeed<'de> for Kind {
    type Value = Object;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Object, D::Error> {
        match self {
            Self::Service => Deserialize::deserialize(deserializer).map(Object::Service),
            Self::EndpointSlice => Deserialize::deserialize(deserializer).map(Object::EndpointSlice),
            Self::Node => Deserialize::deserialize(deserializer).map(Object::Node),
            Self::ServiceCidr => Deserialize::deserialize(deserializer).map(Object::ServiceCidr),
            Self::ServiceNetwork => Deserialize::deserialize(deserializer).map(Object::ServiceNetwork),
            Self::List => Err(D::Error::custom("a List cannot hold a List: move its items up")),
        }
    }
}

/// Reads `items` of a List whose kinds are known.
#[derive(Clone, Copy)]
struct List<'a>(&'a [Kind]);

impl<'de> Visitor<'de> for List<'_> {
    type Value = Vec<Object>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a List with items")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Object>, A::Error> {
        let mut objects = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                objects = map.next_value_seed(self)?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(objects)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Object>, A::Error> {
        let mut objects = Vec::with_capacity(self.0.len());
        for kind in self.0 {
            objects.extend(items.next_element_seed(*kind)?);
        }
        // The end of the sequence must be asked for.
        items.next_element::<IgnoredAny>()?;
        Ok(objects)
    }

    fn visit_unit<E>(self) -> Result<Vec<Object>, E> {
        Ok(Vec::new())
    }
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = Vec<Object>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Object>, D::Error> {
        if self.0.is_empty() {
            deserializer.deserialize_any(self)
        } else {
            deserializer.deserialize_seq(self)
        }
    }
}

impl Object {
    fn into_parsed(self, location: Location) -> Result<Parsed, Problem> {
        let change = self.convert().map_err(|message| Problem { location: Some(location), message })?;
        let id = ObjectId::of(&change).ok_or_else(|| Problem {
            location: Some(location),
            message: "the object has no identity".to_owned(),
        })?;
        Ok(Parsed { id, change, position: Position { line: location.line(), column: location.column() } })
    }

    fn convert(&self) -> Result<Change, String> {
        let (metadata, kind, change) = match self {
            Self::Service(o) => {
                (&o.metadata, Service::KIND, allocated(o).and_then(|()| text(convert::service(o))))
            }
            Self::EndpointSlice(o) => {
                let change = names_a_service(o).and_then(|()| text(convert::endpoint_slice(o)));
                (&o.metadata, EndpointSlice::KIND, change)
            }
            Self::Node(o) => (&o.metadata, Node::KIND, text(convert::node(o)).map(Change::Node)),
            Self::ServiceCidr(o) => {
                (&o.metadata, ServiceCIDR::KIND, text(convert::service_cidr(o)).map(Change::Cidr))
            }
            Self::ServiceNetwork(o) => (&o.0.metadata, "ServiceNetwork", rendered(&o.0)),
        };
        change.map_err(|problem| match metadata.name.as_deref() {
            Some(name) => format!("{kind} {name}: {problem}"),
            None => format!("{kind}: {problem}"),
        })
    }
}

fn text<T>(result: Result<T, convert::InvalidField>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

/// The configuration that the operator would have rendered.
fn rendered(network: &ServiceNetwork) -> Result<Change, String> {
    fairlead_crds::render(network).map(|config| Change::Config(config.into())).map_err(|problems| {
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        problems.join("; ")
    })
}

/// An API server would have chosen the addresses and ports that a Service leaves out. Here nobody
/// does, and a Service without them would be ignored without a word.
fn allocated(service: &Service) -> Result<(), String> {
    let Some(spec) = &service.spec else { return Err("spec is missing".to_owned()) };
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if kind == "ExternalName" {
        return Ok(());
    }
    let nobody = "no API server is here to choose one";
    if convert::first_cluster_ip(spec).is_none_or(str::is_empty) {
        return Err(format!(
            "spec.clusterIP is missing, and {nobody}: write it down (None for a headless Service)"
        ));
    }
    if kind == "NodePort" {
        for (i, port) in spec.ports.iter().flatten().enumerate() {
            if port.node_port.is_none_or(|number| number == 0) {
                return Err(format!("spec.ports[{i}].nodePort is missing, and {nobody}: write it down"));
            }
        }
    }
    Ok(())
}

/// A slice that names no Service would be ignored without a word.
fn names_a_service(slice: &EndpointSlice) -> Result<(), String> {
    let label = convert::SERVICE_NAME_LABEL;
    if slice.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label)) {
        return Ok(());
    }
    Err(format!("label {label} is missing: it says whose endpoints these are"))
}
