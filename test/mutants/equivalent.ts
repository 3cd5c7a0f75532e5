/**
 * Mutants that no test can notice, because the program does the same with them, by id, each with why. `npm run
 * test:mutants` fails on one that lives and isn't here, and on one that is here and no longer exists.
 */
export const EQUIVALENT: Readonly<Record<string, string>> = {
  // Handover and journals.
  "migration/journal:ac69095948": "An equal version has returned before.",

  // Stream, channels and digests.
  "migration/channels/page-sink:efed465811": "Each frame of pages sets it before it is looked at.",
  "migration/channels/page-sink:f8ebde094a": "Each frame of pages sets it before it is looked at.",
  "migration/channels/page-sink:9947e92dd6":
    "Before the hello both are 0 and after it neither is, until the sequence begins again after 2^32 frames.",
  "migration/channels/page-sink:0e567d19c2":
    "Channels have numbers up to 16. One of 256 or more in the header is refused all the same, in other words.",
  "migration/channels/page-sink:35805382f5":
    "All data goes through staging, which has room for any frame: only slower.",
  "migration/channels/page-sink:b86a6cc016": "A frame at the bound goes through staging: only slower.",
  "migration/channels/page-sink:32875079c5":
    "Short runs are received directly, long ones through staging: only slower.",
  "migration/channels/page-sink:b8124fb056": "Shorter runs are received directly: only slower.",
  "migration/channels/page-sink:8d83bd4094": "No body or data is waited for before a header has come.",
  "migration/channels/page-sink:1e42361222": "No body or data is waited for before a header has come.",
};
