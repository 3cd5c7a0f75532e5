/** A value whose fields, and theirs, are only read: the type of a checked document, made of its schema's output. */
export type Immutable<Value> = Value extends object
  ? { readonly [Field in keyof Value]: Immutable<Value[Field]> }
  : Value;
