//! The types of all fields of all kinds, small enough to keep.
//!
//! They come from two places. k8s-openapi's schemas say what fields a type has, of which types, and which are
//! required; they are read once and their descriptions (nine tenths of them) dropped. `fields.txt` adds what
//! those schemas do not say and what never changes: protobuf field numbers, and by which key strategic merge
//! patches merge lists. The codec, the strategic merge and protobuf decoding all read this one model.
//!
//! A line of `fields.txt` is a type and its fields: `name=number`, with `?` after the name when a zero value
//! differs from an absent one (a pointer in Go), `/key` when its list merges by `key` (`/` alone: as a set),
//! `!` when `$retainKeys` applies. `@type=number` is a message whose fields lie in this type's JSON.

mod build;

use std::{collections::HashMap, sync::OnceLock};

/// Index of an object type in [`Types`].
pub type TypeId = usize;

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Text.
    String,
    /// `true` or `false`.
    Bool,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// Any number.
    Number,
    /// Base64 text.
    Bytes,
    /// RFC 3339 time in seconds.
    Time,
    /// RFC 3339 time in microseconds.
    MicroTime,
    /// An amount such as `500m` or `1Gi`.
    Quantity,
    /// A whole number or a text.
    IntOrString,
    /// Anything, such as `managedFields[].fieldsV1`.
    Any,
    /// A list.
    List(Box<Shape>),
    /// A map with text keys.
    Map(Box<Shape>),
    /// An object of a known type.
    Object(TypeId),
}

/// How a strategic merge patch treats a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListMerge {
    /// The patch's list replaces the old one.
    Atomic,
    /// Elements with the same value in this field are one.
    ByKey(Box<str>),
    /// Equal elements are one.
    Set,
}

/// A field of an object type.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its name in JSON.
    pub name: Box<str>,
    /// What it holds.
    pub shape: Shape,
    /// Whether it is always written, even when it is zero.
    pub required: bool,
    /// Whether a zero value differs from an absent one.
    pub zero_counts: bool,
    /// Its protobuf number; 0 when it has none.
    pub number: u32,
    /// How strategic merge treats its list.
    pub merge: ListMerge,
    /// Whether a strategic merge patch may carry `$retainKeys` for it.
    pub retain_keys: bool,
}

/// A protobuf message that JSON does not show: its fields lie in the type that contains it.
#[derive(Clone, Debug)]
pub struct Inlined {
    /// Its protobuf number in the containing message.
    pub number: u32,
    /// JSON field names by protobuf number.
    pub fields: Box<[(u32, Box<str>)]>,
}

/// An object type.
#[derive(Clone, Debug)]
pub struct ObjectType {
    /// Its schema's name, `io.k8s.api.core.v1.Pod`.
    pub name: Box<str>,
    /// Its fields, sorted by name.
    pub fields: Box<[Field]>,
    /// Messages whose fields are among `fields`.
    pub inlined: Box<[Inlined]>,
}

impl ObjectType {
    /// The field of that JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|field| (*field.name).cmp(name)).ok().map(|index| &self.fields[index])
    }

    /// The field of that protobuf number.
    pub fn field_numbered(&self, number: u32) -> Option<&Field> {
        self.fields.iter().find(|field| field.number == number)
    }

    /// The name without its package: `Pod`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// All object types.
#[derive(Debug)]
pub struct Types {
    objects: Vec<ObjectType>,
    by_name: HashMap<Box<str>, TypeId>,
}

impl Types {
    /// The type with that id.
    pub fn object(&self, id: TypeId) -> &ObjectType {
        &self.objects[id]
    }

    /// The id of the type with that schema name.
    pub fn id(&self, name: &str) -> Option<TypeId> {
        self.by_name.get(name).copied()
    }

    /// The names of all types.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.objects.iter().map(|object| &*object.name)
    }
}

/// The types of everything in the registry; built on first use.
pub fn types() -> &'static Types {
    static TYPES: OnceLock<Types> = OnceLock::new();
    TYPES.get_or_init(build::types)
}

pub(crate) use build::definitions;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::resources;

    fn field(schema: &str, name: &str) -> Field {
        let types = types();
        types.object(types.id(schema).expect(schema)).field(name).expect(name).clone()
    }

    #[test]
    fn fields_have_their_types_numbers_and_merge_keys() {
        let containers = field("io.k8s.api.core.v1.PodSpec", "containers");
        assert!(matches!(containers.shape, Shape::List(_)) && containers.required);
        assert_eq!((containers.number, containers.merge), (2, ListMerge::ByKey("name".into())));
        assert_eq!(field("io.k8s.api.core.v1.Secret", "data").shape, Shape::Map(Box::new(Shape::Bytes)));
        assert_eq!(field("io.k8s.api.core.v1.ServicePort", "targetPort").shape, Shape::IntOrString);
        let limits = field("io.k8s.api.core.v1.ResourceRequirements", "limits");
        assert_eq!(limits.shape, Shape::Map(Box::new(Shape::Quantity)));
        assert_eq!(
            field("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "finalizers").merge,
            ListMerge::Set
        );
        assert_eq!(
            field("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "creationTimestamp").shape,
            Shape::Time
        );
        assert!(field("io.k8s.api.apps.v1.DeploymentSpec", "replicas").zero_counts);
        assert!(field("io.k8s.api.apps.v1.DeploymentSpec", "strategy").retain_keys);
        assert_eq!(field("io.k8s.api.core.v1.PodSpec", "hostNetwork").shape, Shape::Bool);
    }

    #[test]
    fn every_kind_and_every_field_is_known() {
        let types = types();
        for row in resources() {
            assert!(types.id(row.schema).is_some(), "{}", row.schema);
            for subresource in row.subresources {
                assert!(types.id(subresource.kind.schema).is_some(), "{}", subresource.kind.schema);
            }
        }
        for object in &types.objects {
            for field in &object.fields {
                let has_type = matches!(&*field.name, "apiVersion" | "kind");
                let inlined =
                    object.inlined.iter().any(|inlined| inlined.fields.iter().any(|(_, n)| *n == field.name));
                assert!(
                    field.number > 0 || has_type || inlined,
                    "{}.{} has no number",
                    object.name,
                    field.name
                );
            }
        }
    }
}
