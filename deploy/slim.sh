#!/bin/sh
# Take out of an installed folder what no running program reads: tests, headers, static libraries and the programs of torch's builders.
# The licences stay, and the one program that torch looks for when it is imported; torch also imports modules that
# are named like tests.
set -eu
folder=$1
find "$folder" -type d \( -name '*.dist-info' -prune -o \( -name tests -o -name test -o -path '*/torch/include' -o -path '*/torch/share' \
    -o -path '*/pyarrow/include' \) -prune -exec rm -r {} + \)
find "$folder" -type f \( -path '*/torch/bin/*' ! -name torch_shm_manager -o -name '*.a' -o -name '*_test.so' -o -name '*.pxd' -o -name '*.pyx' \
    -o ! -path '*/torch/*' \( -name 'test_*.py' -o -name '*_test.py' -o -name conftest.py \) \) -delete
