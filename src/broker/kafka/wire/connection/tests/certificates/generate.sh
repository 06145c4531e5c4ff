#!/bin/sh
# The certificates of the tests beside this folder. They guard nothing; all but one are good for a hundred years.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cat >"$work/ca.conf" <<CONF
[ca]
default_ca = test
[test]
database = $work/index
serial = $work/serial
new_certs_dir = $work
default_md = sha256
policy = any
[any]
commonName = supplied
CONF
: >"$work/index"
echo 01 >"$work/serial"

# certificate NAME SIGNER EXTENSIONS [END]
certificate() {
    openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1.key"
    openssl req -new -key "$1.key" -subj "/CN=fluxmill-test-$1" -out "$work/csr"
    printf '%b\n' "$3" >"$work/extensions"
    if [ "$1" = "$2" ]; then by="-selfsign"; else by="-cert $2.pem"; fi
    # shellcheck disable=SC2086 # two words
    openssl ca -batch -notext -config "$work/ca.conf" $by -keyfile "$2.key" -in "$work/csr" -out "$1.pem" \
        -extfile "$work/extensions" -startdate 20200101000000Z -enddate "${4:-21200101000000Z}"
}
authority="basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign"
here="basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1"
certificate ca ca "$authority"
certificate other-ca other-ca "$authority"
certificate own-ca own-ca "$authority\nsubjectAltName=DNS:localhost"
certificate broker ca "$here"
certificate elsewhere ca "basicConstraints=CA:FALSE\nsubjectAltName=DNS:kafka.example"
certificate expired ca "$here" 20200102000000Z
certificate client ca "basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth"
rm ca.key other-ca.key
chmod 644 ./*.key
