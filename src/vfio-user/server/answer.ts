/** What a command is answered with: a payload, or none; descriptors stay the server's. */
export type Answer = Uint8Array | null | { readonly payload: Uint8Array; readonly fds: readonly number[] };
