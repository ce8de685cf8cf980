#!/bin/sh
# Every figure of speed, the most important first: about 45 minutes on two quiet cores of an EPYC with AVX-512.
#
#     sh benchmarks/full.sh [folder]
#
# Run from the repository's folder, with the package's environment active. A command that is stopped resumes where it was
# when the script is run again. At the published width, rows of one thread have 4 frames instead of 8 (decoding: 2
# instead of 4). Comments are estimated seconds with 3 runs; benchmarks/README.md explains the rows.
set -e
out=${1:-benchmarks/results}
vs() { python -W ignore -m benchmarks.vs --out "$out" --runs 3 "$@"; }
full() { vs --width full --budget "$@"; }

for family in svd animatediff; do
    full --family $family --only step --dtype fp32 --threads 2            # 240
    full --family $family --only step --dtype bf16 --threads 2            # 130
    full --family $family --only step --dtype fp32 --threads 1 --frames 4 # 240
    full --family $family --only step --dtype bf16 --threads 1 --frames 4 # 120
done
for family in svd animatediff; do
    full --family $family --only decode --threads 2            # 120
    full --family $family --only decode --threads 1 --frames 2 # 100
done
for family in svd animatediff; do
    vs --family $family --only step decode memory cold --threads 2 # 110
    vs --family $family --only step decode --threads 1             # 60
done
python -W ignore -m benchmarks.errors --out "$out" --runs 5 --threads 2              # 50
python -W ignore -m benchmarks.stay --out "$out" --runs 3 --threads 2                # 240
full --family sdxl --dtype bf16 --threads 2                                          # 130
full --family opensora --only double_1024 single_1024 --threads 2                    # 60
full --family opensora --only double_4096 single_4096 --threads 2                    # 150
full --family t5 --threads 2                                                         # 60
python -W ignore -m benchmarks.choices --out "$out" --runs 3 --threads 2             # 200
python -W ignore -m benchmarks.choices --out "$out" --runs 3 --threads 1 --only rows # 150
python -W ignore -m benchmarks.errors --out "$out" --runs 2 --threads 2 --width full # 300
