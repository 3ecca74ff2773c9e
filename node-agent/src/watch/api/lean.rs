//! Objects of the API, made lean the moment they are read.
//!
//! A list of ten thousand Services is never held as such: each is converted while the stream is parsed,
//! and what is left of it is a `Change`, or the reason why there is none.

use std::{borrow::Cow, fmt, marker::PhantomData};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1::EndpointSlice, networking::v1::ServiceCIDR},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

use crate::watch::{Change, ObjectId, ObjectKey, convert};

/// A kind that the model is built from.
pub(super) trait Kind: Resource<DynamicType = ()> + for<'de> Deserialize<'de> + 'static {
    /// Its name.
    const NAME: &'static str;

    /// What the object amounts to.
    fn change(&self) -> Result<Change, convert::InvalidField>;

    /// Its identity, also where the object itself cannot be used.
    fn id(namespace: &str, name: &str) -> ObjectId;
}

impl Kind for core::Service {
    const NAME: &'static str = "Service";

    fn change(&self) -> Result<Change, convert::InvalidField> {
        convert::service(self)
    }

    fn id(namespace: &str, name: &str) -> ObjectId {
        ObjectId::Service(ObjectKey { namespace: namespace.into(), name: name.into() })
    }
}

impl Kind for EndpointSlice {
    const NAME: &'static str = "EndpointSlice";

    fn change(&self) -> Result<Change, convert::InvalidField> {
        convert::endpoint_slice(self)
    }

    fn id(namespace: &str, name: &str) -> ObjectId {
        ObjectId::Slice(ObjectKey { namespace: namespace.into(), name: name.into() })
    }
}

impl Kind for core::Node {
    const NAME: &'static str = "Node";

    fn change(&self) -> Result<Change, convert::InvalidField> {
        convert::node(self).map(Change::Node)
    }

    fn id(_namespace: &str, name: &str) -> ObjectId {
        ObjectId::Node(name.into())
    }
}

impl Kind for ServiceCIDR {
    const NAME: &'static str = "ServiceCIDR";

    fn change(&self) -> Result<Change, convert::InvalidField> {
        convert::service_cidr(self).map(Change::Cidr)
    }

    fn id(_namespace: &str, name: &str) -> ObjectId {
        ObjectId::Cidr(name.into())
    }
}

/// What is kept of an object of kind `K`.
pub(super) struct Lean<K> {
    /// Name, namespace and version, and nothing else.
    meta: ObjectMeta,
    pub id: ObjectId,
    pub change: Result<Change, convert::InvalidField>,
    kind: PhantomData<fn() -> K>,
}

impl<K: Kind> From<K> for Lean<K> {
    fn from(mut object: K) -> Self {
        let change = object.change();
        let meta = std::mem::take(object.meta_mut());
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        Self {
            id: K::id(&text(&meta.namespace), &text(&meta.name)),
            change,
            meta: ObjectMeta {
                name: meta.name,
                namespace: meta.namespace,
                resource_version: meta.resource_version,
                ..ObjectMeta::default()
            },
            kind: PhantomData,
        }
    }
}

impl<'de, K: Kind> Deserialize<'de> for Lean<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        K::deserialize(deserializer).map(Self::from)
    }
}

impl<K> Clone for Lean<K> {
    fn clone(&self) -> Self {
        Self { meta: self.meta.clone(), id: self.id.clone(), change: self.change.clone(), kind: PhantomData }
    }
}

impl<K> fmt::Debug for Lean<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lean").field("id", &self.id).field("change", &self.change).finish_non_exhaustive()
    }
}

impl<K: Kind> Resource for Lean<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}
