/**
 * Mutants that no test can notice, because the program does the same with them, by id, each with why. `npm run
 * test:mutants` fails on one that lives and isn't here, and on one that is here and no longer exists.
 */
export const EQUIVALENT: Readonly<Record<string, string>> = {};
