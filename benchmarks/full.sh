#!/bin/sh
# Every figure of speed, the most important first. Run on a quiet machine from the repository's folder, with the package's
# environment active: sh benchmarks/full.sh [folder]. A command that is stopped resumes where it was.
# One thread measures 4 frames instead of 8, which only halves the time. Seconds are estimates for two cores of an EPYC
# with AVX-512; `benchmarks/README.md` explains the rows.
set -e
out=${1:-benchmarks/results}
vs() { python -W ignore -m benchmarks.vs --out "$out" --runs 3 "$@"; }

step() { # family: a guided step at the published width
    vs --family "$1" --width full --budget --only step --dtype fp32 --threads 2            # 240 s
    vs --family "$1" --width full --budget --only step --dtype bf16 --threads 2            # 140 s
    vs --family "$1" --width full --budget --only step --dtype fp32 --threads 1 --frames 4 # 240 s
    vs --family "$1" --width full --budget --only step --dtype bf16 --threads 1 --frames 4 # 130 s
}

step svd
step animatediff
for family in svd animatediff; do # 100, 60; 90, 50 s
    vs --family $family --width full --budget --only decode --threads 2
    vs --family $family --width full --budget --only decode --threads 1 --frames 2
done
for family in svd animatediff; do # 100 s each
    vs --family $family --only step decode cold --threads 2
done
vs --family sdxl --width full --budget --dtype bf16 --threads 2       # 150 s
vs --family opensora --width full --budget --threads 2                # 180 s
vs --family t5 --width full --budget --threads 2                      # 60 s
