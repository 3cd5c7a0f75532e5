/**
 * `dirtmap/certs`: certificates for trying out `tls://` between two machines. A production setup has a CA of its own.
 *
 * Importing this door adds to the global `Reflect` what reflect-metadata defines, since @peculiar/x509 looks for it there.
 * @module
 */

export { makeCertificates, type TryoutCertificates, writeCertificates } from "./certs.js";
