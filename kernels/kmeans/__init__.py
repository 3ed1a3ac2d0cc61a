"""K-means of every neuron's images, for every number of clusters, from several starts.

``reference`` says what is computed, a loop over points that anyone can check. ``torch`` takes all
neurons and starts at once (the loop takes thousands of times as long, so it serves tests alone),
``cpu`` one neuron after the other in vectors of points, ``triton`` a start in each program. These
three read Gram matrices and never form a centroid: with n points a Gram matrix has n x n entries
whatever the embedding size, and one product with the cluster memberships gives every distance
that is needed (kernel k-means; Dhillon, Guan & Kulis 2004).
"""
