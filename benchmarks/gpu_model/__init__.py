"""How fast a GPU would run the compiled kernels: a model, made of counted instructions and bytes, not a measurement.

`python -m benchmarks.gpu_model` writes benchmarks/results/gpu_model/<machine>.json and its page of the documentation.

1. `capture`: a benchmark case runs in the emulator of PTX, a few blocks of every launch, which gives the instructions
   that were issued on each line of the PTX, and the distinct bytes.
2. `sass`: ptxas compiles the same PTX with every instruction marked by its line, so that each machine instruction is
   known by the instruction of the PTX that it was made from.
3. `cost`: both together are machine instructions issued; divided by a machine's rates they are times, the longest of
   which is the prediction.
"""
