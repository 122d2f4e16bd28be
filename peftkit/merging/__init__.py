"""An adapter folded into its base one tensor at a time: memory is bounded by the largest tensor, not by the model.

base, adapters = read_base(folder), [read_adapter(folder)]
plan = direct.plan(base, adapters[0], ...)      # or by_peft.plan: tensor name -> how it is made
stream.write(plan, folder, ...)                 # shards and index
"""
