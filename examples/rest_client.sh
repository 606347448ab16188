#!/bin/sh
# Pictures through a server, with curl:
#
#     cmmfnet serve &
#     sh rest_client.sh frame.tiff colour.png
#
# SERVER and TOKEN come from the environment.
set -eu
server=${SERVER:-http://127.0.0.1:8000}
picture=$1 out=$2

# --retry waits as the answer 429 says. The picture goes as a form, the text as a field of it.
curl --fail-with-body --silent --show-error --retry 5 \
  --header "Authorization: Bearer ${TOKEN:-none}" \
  --form "picture=@$picture" --form "text=a street at night" \
  --output "$out" "$server/v1/colorize"

# the things that the model sees in it; here the file itself is the body
curl --fail-with-body --silent --show-error --retry 5 \
  --header "Authorization: Bearer ${TOKEN:-none}" \
  --data-binary "@$picture" "$server/v1/tags?top=5"
