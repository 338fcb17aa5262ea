package node

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	registryCertFile = "registry.crt"
	registryKeyFile  = "registry.key"
	trustDir         = "trust"
	// registryLifetime is how long a certificate for clients is good: some of them refuse
	// more than 398 days.
	registryLifetime = 397 * 24 * time.Hour
	// registryRenewal is how long before its end it is made anew.
	registryRenewal = 30 * 24 * time.Hour
)

// RegistryCertificate is a certificate for the registry port with the authority behind
// it, which is nobody's but the folder's.
type RegistryCertificate struct {
	// CA is the file that clients have to trust, alone in its folder, since some of them
	// want a folder.
	CA string
	// Cert and Key are the files, as registry.tls.cert and registry.tls.key want them.
	Cert, Key string
}

// MakeRegistryCertificate makes an authority of its own in a folder, and a certificate
// for clients that use these host names and addresses, as far as they are missing, for
// other hosts, or about to expire. The authority stays, so that clients have to trust it
// once. It is for clusters on one machine: everybody else has an authority already.
func MakeRegistryCertificate(dir string, hosts []string) (RegistryCertificate, error) {
	files := RegistryCertificate{
		CA: filepath.Join(dir, trustDir, authorityCertFile), Cert: filepath.Join(dir, registryCertFile), Key: filepath.Join(dir, registryKeyFile),
	}
	if err := os.MkdirAll(filepath.Dir(files.CA), 0o700); err != nil {
		return files, fmt.Errorf("make folder of the registry's certificate: %w", err)
	}
	authority, err := openAuthority(CertificatesConfig{Dir: dir, Cluster: "registry"})
	if err != nil {
		return files, err
	}
	if err := authority.ensureCopy(files.CA); err != nil {
		return files, err
	}
	if certifies(files.Cert, authority.cert, hosts) {
		return files, nil
	}
	if err := os.Remove(files.Cert); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return files, fmt.Errorf("replace the registry's certificate: %w", err)
	}
	if err := authority.signRegistry(files, hosts); err != nil {
		return files, fmt.Errorf("make the registry's certificate: %w", err)
	}
	return files, nil
}

// certifies says whether a file has a certificate that will do.
func certifies(file string, authority *x509.Certificate, hosts []string) bool {
	content, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	certificate, err := parseCertificate(content)
	if err != nil || bytes.Equal(certificate.RawSubject, certificate.RawIssuer) || certificate.CheckSignatureFrom(authority) != nil || time.Until(certificate.NotAfter) < registryRenewal {
		return false
	}
	for _, host := range hosts {
		if certificate.VerifyHostname(host) != nil {
			return false
		}
	}
	return true
}

func (a *certificateAuthority) signRegistry(files RegistryCertificate, hosts []string) error {
	authorityKey, err := readKey(filepath.Join(a.dir, authorityKeyFile))
	if err != nil {
		return err
	}
	key, err := ensureKey(files.Key)
	if err != nil {
		return err
	}
	template, err := certificateTemplate(registryCertificateName, registryLifetime)
	if err != nil {
		return err
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, host := range hosts {
		if address := net.ParseIP(host); address != nil {
			template.IPAddresses = append(template.IPAddresses, address)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), authorityKey)
	if err != nil {
		return fmt.Errorf("sign %s: %w", files.Cert, err)
	}
	return createFile(files.Cert, certificatePEM(der), 0o644)
}

// registryCertificateName is the certificate's common name, for people. It is another
// one than the authority's: OpenSSL, and curl with it, takes a certificate whose issuer
// has its own name for one that has signed itself, and refuses it.
const registryCertificateName = "registry server"
